"""What a run would see of a file: rows, labels, turns, lengths, languages, folds, leaks, odd rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from lmsys_unsloth.config.schema import DataConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data import row_cache, sources
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.dataset import load_fold
from lmsys_unsloth.data.duplicates import content_key, find_similar
from lmsys_unsloth.data.folds import balance
from lmsys_unsloth.data.sources import BadRow, Rows
from lmsys_unsloth.data_tools.odd_rows import OddRow, find_odd_rows
from lmsys_unsloth.report.slices import languages

SHOWN = 50
"""Maximum number of odd rows of one kind that are kept; all are counted."""

CHARACTERS_PER_TOKEN = 4
"""Rough figure for English text, by which tokens are estimated before a model is chosen."""

DECISIVE_LENGTH = 0.2
"""Relative difference in length from which one response counts as the longer one."""


@dataclass(frozen=True)
class ModelRecord:
    """How often a model was compared, and won."""

    name: str
    comparisons: int
    won: int
    tied: int


@dataclass(frozen=True)
class Share:
    """A share of some rows, with its 95% Wilson interval."""

    count: int
    rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        low, high = binomtest(self.count, self.rows).proportion_ci(0.95, method="wilson")
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count / self.rows:.1%} of {self.rows:,} (95% interval {low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Overlap:
    """How many rows have something in common with rows of another file."""

    other: str
    rows: int
    same_comparison: int
    same_prompt: int
    """Equal or nearly equal."""


@dataclass(frozen=True)
class Profile:
    """Everything that ``data check`` says of a file."""

    path: str
    layout: str
    rows: int
    bad: Sequence[BadRow]
    repaired: dict[str, int]
    outcomes: NDArray[np.int64]
    """Outcome of each row in LABELS order; -1 where it is not known."""
    labels: dict[str, int]
    both_bad: int
    soft_labels: int
    turns: dict[int, int]
    lengths: dict[str, NDArray[np.int64]]
    """Characters of each row: ``prompt``, ``response A``, ``response B``."""
    languages: dict[str, int]
    models: list[ModelRecord]
    columns: list[str]
    """Further columns, which are kept with each row."""
    first_wins: Share | None
    """How often A wins, where a response wins."""
    longer_wins: Share | None
    """How often the longer response wins, where a response wins and the lengths differ clearly."""
    fold: dict[str, Any]
    """What ``data.json`` of a run of fold 0 would say; empty for a file that can't be trained on."""
    no_fold: str | None
    """Why it can't."""
    odd: dict[str, list[OddRow]]
    odd_counts: dict[str, int]
    overlap: Overlap | None

    @property
    def tokens(self) -> int:
        """Rough number of tokens of all rows."""
        return int(sum(values.sum() for values in self.lengths.values())) // CHARACTERS_PER_TOKEN


def make_profile(config: DataConfig, against: str | None = None) -> Profile:
    """Read ``config.path`` and describe it; bad rows are listed, not raised.

    Args:
        config: the data section of a run; ``bad_rows`` is taken to be ``skip``.
        against: another file, to count rows that both have.

    Raises:
        UserError: the file as a whole is unusable, or has no usable row.
    """
    path = config.path
    assert path is not None
    config = config.model_copy(update={"bad_rows": "skip"})
    source = _read(config, path)
    rows, odd, counts = source.rows, defaultdict[str, list[OddRow]](list), Counter[str]()
    for found in find_odd_rows(rows):
        counts[found.kind] += 1
        if len(odd[found.kind]) < SHOWN:
            odd[found.kind].append(found)
    fold, no_fold = _fold(config, rows)
    lengths = {
        "prompt": _characters(row.prompts for row in rows),
        "response A": _characters(row.responses_a for row in rows),
        "response B": _characters(row.responses_b for row in rows),
    }
    labels = np.array([-1 if row.label is None else row.label for row in rows])
    return Profile(
        path=path, layout=source.layout, rows=len(rows), bad=source.bad, repaired=dict(source.notes),
        outcomes=labels, labels=balance(rows), both_bad=sum(row.both_bad for row in rows),
        soft_labels=sum(row.soft_label is not None for row in rows),
        turns=dict(sorted(Counter(len(row.prompts) for row in rows).items())),
        lengths=lengths, languages=dict(Counter(languages(rows)).most_common()),
        models=_models(rows), columns=sorted({name for row in rows for name in row.extra}),
        first_wins=_share(labels[labels < 2] == 0, labels[labels < 2] >= 0),
        longer_wins=_longer_wins(labels, lengths["response A"], lengths["response B"]),
        fold=fold, no_fold=no_fold, odd=dict(odd), odd_counts=dict(counts.most_common()),
        overlap=None if against is None else _overlap(config, rows, against),
    )  # fmt: skip


def _read(config: DataConfig, path: str) -> Rows:
    source = row_cache.read_source_cached(
        path, layout=config.layout, split=config.split, soft_labels=config.soft_labels is not False
    )
    if not source.rows:
        raise UserError(f"{sources.describe_bad_rows(source.bad, len(source.bad))}\n  No row can be used.")
    return source


def _fold(config: DataConfig, rows: Sequence[Comparison]) -> tuple[dict[str, Any], str | None]:
    """What a run of fold 0 would write into ``data.json``, or why there can be none."""
    unlabelled = sum(row.label is None for row in rows)
    if unlabelled:
        return (
            {},
            f"{unlabelled:,} of {len(rows):,} rows have no label: they can only be predicted",
        )
    try:
        return load_fold(config, 0).description, None
    except UserError as error:
        return {}, str(error)


def _characters(texts: Any) -> NDArray[np.int64]:
    return np.array([sum(map(len, turns)) for turns in texts], dtype=np.int64)


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Share | None:
    return Share(int((hits & among).sum()), int(among.sum())) if among.any() else None


def _longer_wins(labels: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> Share | None:
    clear = np.abs(a - b) > DECISIVE_LENGTH * np.maximum(a, b)
    decided = (labels == 0) | (labels == 1)
    return _share(labels == np.where(a > b, 0, 1), decided & clear)


def _models(rows: Sequence[Comparison]) -> list[ModelRecord]:
    """Records of all named models, the most frequent first."""
    compared, won, tied = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        sides = (row.model_a, row.model_b)
        for index, name in enumerate(sides):
            if name is not None:
                compared[name] += 1
                won[name] += row.label == index
                tied[name] += row.label == 2
    return [ModelRecord(name, count, won[name], tied[name]) for name, count in compared.most_common()]


def _overlap(config: DataConfig, rows: Sequence[Comparison], against: str) -> Overlap:
    other = _read(config, against).rows
    known = {content_key(row) for row in other}
    texts = (row.prompt_text for part in (rows, other) for row in part)
    near = find_similar(texts, config.near_duplicate).near
    return Overlap(
        other=against,
        rows=len(other),
        same_comparison=sum(content_key(row) in known for row in rows),
        same_prompt=int(np.isin(near[: len(rows)], near[len(rows) :]).sum()),
    )
