"""Reading of all rows of a file or dataset, in order, and of the reasons why rows can't be used."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_csv
from lmsys_unsloth.data import readers, schemas
from lmsys_unsloth.data.cells import Problem
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import Layout, Schema

SAMPLE = 100
"""Number of records from which the layout is recognised."""
SHOWN = 10
"""Number of bad rows listed in a message; counts cover all of them."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used, and why."""

    source: str
    number: int
    """1 for the first row below the header."""
    id: str
    kinds: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one source."""

    source: str
    layout: str
    rows: Sequence[Comparison]
    bad: list[BadRow] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    """Repaired cells by kind, see :func:`~lmsys_unsloth.data.schemas.parse_record`."""


def check_source(path: str, *, layout: Layout | Literal["auto"], labelled: bool, soft_labels: bool) -> None:
    """Open a file and read its first records only: is it usable as a whole, and has it labels?

    Raises:
        UserError: as :func:`open_rows`, or no column says which response won although ``labelled``.
    """
    columns, records = readers.open_source(path, "")
    schema = _schema(path, columns, list(itertools.islice(records, SAMPLE)), layout, soft_labels)
    if labelled and schema.outcome_columns is None and schema.soft_columns is None:
        raise UserError(
            f"{path}: no column says which response won, so nothing can be trained; found "
            f"{', '.join(columns)}.\n"
            "  Training needs winner_model_a, winner_model_b, winner_tie (or winner); prediction "
            "with eval.py run=RUN does not."
        )


def read_source(path: str, *, layout: Layout | Literal["auto"], split: str, soft_labels: bool) -> Rows:
    """Read every row of one source, as :func:`open_rows` does."""
    source, rows = open_rows(path, layout=layout, split=split, soft_labels=soft_labels)
    return dataclasses.replace(source, rows=list(rows))


def open_rows(
    path: str, *, layout: Layout | Literal["auto"], split: str, soft_labels: bool
) -> tuple[Rows, Iterator[Comparison]]:
    """Open a source, whose rows are then read one by one; bad ones are noted, not raised.

    Args:
        path: a file, or ``hf:owner/name``.
        layout: ``auto`` or a :data:`~lmsys_unsloth.data.schemas.Layout`.
        split: of a Hugging Face dataset.
        soft_labels: use the columns that hold probabilities or votes.

    Returns:
        The source without its rows, to which bad rows and notes are added while the rows are read; the rows.

    Raises:
        UserError: the source as a whole is unusable: missing, empty, of unknown kind, changed
            while it was read, compressed and cut short, or without a needed column.
    """
    columns, records = readers.open_source(path, split)
    head = list(itertools.islice(records, SAMPLE))
    schema = _schema(path, columns, head, layout, soft_labels)
    result = Rows(path, schema.layout, rows=[])
    return result, _usable(result, itertools.chain(head, records), schema)


def _schema(
    path: str,
    columns: Sequence[str],
    head: Sequence[readers.Record],
    layout: Layout | Literal["auto"],
    soft_labels: bool,
) -> Schema:
    if not head:
        raise UserError(f"{path}: no rows; a file of preferences needs at least one below its header")
    sample = [cells for _, cells in head if not isinstance(cells, Problem)]
    return schemas.schema_of(columns, sample, layout, path, soft_labels)


def _usable(result: Rows, records: Iterable[readers.Record], schema: Schema) -> Iterator[Comparison]:
    """Yield the rows that can be used; the others, and notes, are added to ``result``."""
    first_use: dict[str, int] = {}
    for number, cells in records:
        if isinstance(cells, Problem):
            row, row_id, problems = None, cells.row_id, [cells]
        else:
            row, row_id, problems = schemas.parse_record(cells, schema, result.notes)
        if row is not None and first_use.setdefault(row_id, number) != number:
            detail = f"the id is already used by row {first_use[row_id]}"
            problems = [Problem("id used twice", detail)]
        if row is not None and not problems:
            yield row
        else:
            kinds = tuple(problem.kind for problem in problems)
            reason = "; ".join(problem.detail for problem in problems)
            result.bad.append(BadRow(result.source, number, row_id, kinds, reason))


def count_reasons(bad: Sequence[BadRow]) -> dict[str, int]:
    """Count rows by kind of problem, most frequent first; a row may have several."""
    return dict(Counter(kind for row in bad for kind in row.kinds).most_common())


def describe_bad_rows(bad: Sequence[BadRow], total: int) -> str:
    """Describe bad rows for a message: counts by reason and the first ten.

    >>> print(describe_bad_rows([BadRow("a.csv", 2, "7", ("no turns",), "the conversation has no turns")], 5))
    1 of 5 rows can't be used:
      1 × no turns
      a.csv row 2, id 7: the conversation has no turns
    """
    lines = [f"{len(bad):,} of {total:,} rows can't be used:"]
    lines += [f"  {count:,} × {kind}" for kind, count in count_reasons(bad).items()]
    lines += [f"  {row.source} row {row.number}, id {row.id or '?'}: {row.reason}" for row in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  … and {len(bad) - SHOWN:,} more")
    return "\n".join(lines)


def save_bad_rows(path: Path, bad: Sequence[BadRow]) -> None:
    """Write ``source, row, id, kinds, reason``, one line per bad row."""
    lines = ((row.source, row.number, row.id, "; ".join(row.kinds), row.reason) for row in bad)
    write_csv(path, ("source", "row", "id", "kinds", "reason"), lines)
