"""Conversion of public sets of preferences to the Kaggle layout."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.data import readers, sources
from lmsys_unsloth.data.cells import CellError, Problem, shorten
from lmsys_unsloth.data.comparison import LABELS, Comparison
from lmsys_unsloth.data.readers import Record
from lmsys_unsloth.data.schemas import MODELS, TEXTS, WINNERS
from lmsys_unsloth.data.sources import BadRow
from lmsys_unsloth.data_tools.layouts import Layout, find_layout, known_layouts, read_layout
from lmsys_unsloth.data_tools.messages import dialogue

LARGEST = 10
"""Absolute value above which a signed preference is a code for something else."""

BATCH = 1000
"""Rows that a Parquet file receives at once."""


@dataclass
class Converted:
    """What became of a file."""

    layout: str
    title: str
    licence: str
    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)


def convert(
    path: str, out: Path, *, layout: str = "auto", split: str = "train", skip: bool = False
) -> Converted:
    """Write the rows of a public set as a file that ``data.path`` takes.

    Args:
        path: a file, or ``hf:owner/name``.
        out: a ``.csv`` or ``.parquet`` file, which appears when it is complete.
        layout: ``auto``, a name of :func:`~lmsys_unsloth.data_tools.layouts.known_layouts`, or a YAML file.
        split: of a Hugging Face dataset.
        skip: leave out rows that can't be converted, instead of refusing the file.

    Raises:
        UserError: the file is unusable, its layout is not known, or it has rows that can't be converted.
    """
    known = known_layouts()
    if layout != "auto" and layout not in known:
        known[layout] = read_layout(Path(layout))
    wanted = frozenset().union(*(each.read_columns() for each in known.values()))
    columns, records = readers.open_source(path, split, wanted)
    name, chosen = find_layout(columns, path) if layout == "auto" else (Path(layout).stem, known[layout])
    if missing := [column for column in chosen.columns if column not in columns]:
        found = f"found {', '.join(columns)}"
        raise UserError(f"{path}: column {', '.join(missing)} missing for layout={name}; {found}")
    if chosen.rows_in_pairs:
        records = _pairs(records, chosen.rows_in_pairs)
    result = Converted(name, chosen.title, chosen.licence)
    kept = [column for column in chosen.keep if column in columns and column not in ("id", *MODELS, *WINNERS)]
    with _writer(out, ("id", *MODELS, *TEXTS, *WINNERS, *kept)) as write:
        for row in _rows(records, chosen, result, path, kept):
            result.outcomes[LABELS[row.label or 0]] += 1
            write(_cells(row, kept))
        total = sum(result.outcomes.values())
        if not total or (result.bad and not skip):
            remedy = "  Leave them out with bad=skip." if total else "  Is it another layout? layout=NAME."
            raise UserError(f"{sources.describe_bad_rows(result.bad, total + len(result.bad))}\n{remedy}")
    return result


def _pairs(records: Iterable[Record], column: str) -> Iterator[Record]:
    """Join two consecutive rows with the same value in ``column``."""
    first: tuple[int, Mapping[str, Any]] | None = None
    for number, cells in records:
        if isinstance(cells, Problem):
            yield number, cells
        elif first is not None and first[1].get(column) == cells.get(column):
            one = {f"1:{name}": value for name, value in first[1].items()}
            yield first[0], one | {f"2:{name}": value for name, value in cells.items()}
            first = None
        else:
            if first is not None:
                yield first[0], Problem("no second response", f"the next row has another {column}")
            first = number, cells
    if first is not None:
        yield first[0], Problem("no second response", "the file ends here")


def _rows(
    records: Iterable[Record], layout: Layout, result: Converted, path: str, kept: Sequence[str]
) -> Iterator[Comparison]:
    """Convert row by row; what can't be converted is added to ``result.bad``."""
    used = set[str]()
    for number, cells in records:
        try:
            if isinstance(cells, Problem):
                raise CellError(cells.kind, cells.detail)
            given = cells.get(layout.id) if layout.id else None
            name = f"{result.layout}-{number}" if given is None or given == "" else str(given)
            while name in used:
                name = f"{name}-{number}"
            row = _row(cells, layout, name, kept)
        except CellError as error:
            problem = error.problem
            result.bad.append(BadRow(path, number, "", (problem.kind,), problem.detail))
        else:
            used.add(name)
            yield row


def _row(cells: Mapping[str, Any], layout: Layout, name: str, kept: Sequence[str]) -> Comparison:
    prompt = cells.get(layout.prompt) if layout.prompt else None
    prompts, responses_a = dialogue(prompt, cells.get(layout.response_a), layout.response_a)
    prompts_b, responses_b = dialogue(prompt, cells.get(layout.response_b), layout.response_b)
    count = _turns(cells, layout, len(prompts))
    if prompts[:count] != prompts_b[:count]:
        raise CellError("different prompts", "the user's turns before the two responses differ")
    row = Comparison(
        name, prompts[:count], responses_a[:count], responses_b[:count],
        label=_outcome(cells, layout),
        model_a=_text(cells, layout.model_a), model_b=_text(cells, layout.model_b),
        extra={key: v for key in kept if isinstance(v := cells.get(key), str | int | float | bool)},
    )  # fmt: skip
    swapped = layout.shuffle and hashlib.sha256(name.encode("utf-8", "replace")).digest()[0] & 1
    return row.swapped() if swapped else row


def _turns(cells: Mapping[str, Any], layout: Layout, longest: int) -> int:
    """Number of turns that were judged."""
    if layout.turns is None:
        return longest
    cell = cells.get(layout.turns)
    count = _number(cell)
    if not 1 <= count <= longest:
        raise CellError("no such turn", f"{layout.turns} is {shorten(cell)}, but there are {longest} turns")
    return int(count)


def _outcome(cells: Mapping[str, Any], layout: Layout) -> int:
    outcome = layout.outcome
    if outcome.first:
        return 0
    if outcome.scores:
        a, b = (_number(cells.get(name)) for name in outcome.scores)
        if math.isnan(a) or math.isnan(b):
            raise CellError("no winner", f"{' and '.join(outcome.scores)} must be numbers")
        return 2 if a == b else int(b > a)
    cell = cells.get(outcome.column or "")
    if outcome.values is not None:
        key = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
        if key not in outcome.values:
            known = ", ".join(outcome.values)
            raise CellError("no winner", f"{outcome.column} is {shorten(cell)}; it must be one of {known}")
        return LABELS.index(outcome.values[key])
    number = _number(cell)
    if not abs(number) <= LARGEST:
        raise CellError("no winner", f"{outcome.column} is {shorten(cell)}, no signed preference")
    return 2 if number == 0 else int(number > 0)


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _text(cells: Mapping[str, Any], column: str | None) -> str | None:
    cell = cells.get(column) if column else None
    return cell if isinstance(cell, str) and cell else None


class _Write(Protocol):
    def __call__(self, cells: Sequence[str], /) -> None: ...


def _cells(row: Comparison, kept: Sequence[str]) -> list[str]:
    texts = (row.prompts, row.responses_a, row.responses_b)
    return [
        row.id,
        row.model_a or "",
        row.model_b or "",
        *(json.dumps(turns, ensure_ascii=False) for turns in texts),
        *(str(int(row.label == index)) for index in range(3)),
        *(str(row.extra.get(name, "")) for name in kept),
    ]


@contextmanager
def _writer(out: Path, columns: Sequence[str]) -> Iterator[_Write]:
    """Write rows of texts as CSV or Parquet; nothing remains if the block fails."""
    if out.suffix == ".csv":
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            yield writer.writerow
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Sequence[str]] = []
    schema = pa.schema([(name, pa.string()) for name in columns])
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as parquet:

        def flush() -> None:
            if rows:
                parquet.write_table(pa.table(list(map(pa.array, zip(*rows, strict=True))), schema=schema))
            rows.clear()

        def write(cells: Sequence[str]) -> None:
            rows.append(cells)
            if len(rows) == BATCH:
                flush()

        yield write
        flush()
