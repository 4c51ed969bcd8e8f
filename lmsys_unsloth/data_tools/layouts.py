"""Layouts of public sets of preferences, each described by a small YAML file in ``layouts/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.schemas import CONVERSATIONS, TEXTS

FOLDER = Path(__file__).with_name("layouts")


class Outcome(BaseModel):
    """Which response won. Exactly one of ``values``, ``sign``, ``scores`` and ``first`` is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str | None = None
    """The column that ``values`` or ``sign`` read."""
    values: dict[str, Literal["a", "b", "tie"]] | None = None
    """The outcome of each value of ``column``."""
    sign: bool = False
    """A number below 0 in ``column`` means A, above 0 B, and 0 a tie."""
    scores: tuple[str, str] | None = None
    """Columns with a score of A and of B: the higher one wins, equal ones are a tie."""
    first: bool = False
    """A always wins, as in sets of chosen and rejected responses."""

    @model_validator(mode="after")
    def _one_way(self) -> Outcome:
        if sum([self.values is not None, self.sign, self.scores is not None, self.first]) != 1:
            raise ValueError("give one of values, sign, scores and first")
        if (self.values is not None or self.sign) != (self.column is not None):
            raise ValueError("column belongs to values and sign")
        return self


class Layout(BaseModel):
    """Meaning of the columns of one public set of preferences.

    A cell with texts may be plain text, a list of messages (``{"role", "content"}``), or a transcript
    (``Human: … Assistant: …``); a response may contain the whole conversation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    """The set, with the name under which it is published."""
    licence: str
    """As its publisher states it."""
    columns: list[str] = Field(min_length=1)
    """Columns by which the layout is recognised: all must be there."""
    absent: list[str] = []
    """Columns of other sets with the same columns: none may be there."""
    id: str | None = None
    """null: rows are numbered."""
    prompt: str | None = None
    """null: the responses contain the whole conversation."""
    response_a: str
    response_b: str
    model_a: str | None = None
    model_b: str | None = None
    turns: str | None = None
    """Column with the number of turns that were judged; later ones are cut off."""
    rows_in_pairs: str | None = None
    """Two consecutive rows with the same value in this column are one comparison. Their columns are then
    named ``1:NAME`` and ``2:NAME``."""
    shuffle: bool = False
    """Exchange the responses of half of the rows, chosen by their id."""
    outcome: Outcome
    keep: list[str] = []
    """Further columns that are kept."""

    def read_columns(self) -> frozenset[str]:
        """All columns of the file that the layout reads."""
        outcome = self.outcome
        named = [
            self.id, self.prompt, self.response_a, self.response_b, self.model_a, self.model_b, self.turns,
            self.rows_in_pairs, outcome.column, *(outcome.scores or ()), *self.columns, *self.keep,
        ]  # fmt: skip
        return frozenset(name.removeprefix("1:").removeprefix("2:") for name in named if name)


def read_layout(file: Path) -> Layout:
    """Read the description of one layout.

    Raises:
        UserError: the file can't be read, or is no description.
    """
    try:
        return Layout.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{file}: is no layout: {error}\n  docs/data.md describes the file.") from None


def known_layouts() -> dict[str, Layout]:
    """All layouts of this package by name; those with the most columns come first, and are tried first."""
    found = {file.stem: read_layout(file) for file in sorted(FOLDER.glob("*.yaml"))}
    return dict(sorted(found.items(), key=lambda item: -len(item[1].columns)))


def find_layout(columns: Sequence[str], path: str) -> tuple[str, Layout]:
    """The layout of a file by its columns.

    Raises:
        UserError: it is read without a conversion, or not known.
    """
    names = set(columns)
    for name, layout in known_layouts().items():
        if names.issuperset(layout.columns) and names.isdisjoint(layout.absent):
            return name, layout
    if names.issuperset(TEXTS) or names.issuperset(CONVERSATIONS):
        raise UserError(f"{path}: needs no conversion; train with data=lmsys data.path={path}")
    known = "\n".join(f"  {name}: {', '.join(layout.columns)}" for name, layout in known_layouts().items())
    raise UserError(
        f"{path}: has the columns {', '.join(columns)}, and no layout that is known:\n{known}\n"
        "  Describe it in a YAML file and give layout=FILE.yaml (docs/data.md)."
    )
