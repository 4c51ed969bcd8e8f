"""Readers of CSV, Parquet, JSONL and Hugging Face datasets; a record maps column names to cells.

Text files are decoded with ``surrogateescape``, so that one broken byte makes one bad row and not
an unreadable file. A file must be the same when its last row has been read as when it was opened.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.data import schemas
from lmsys_unsloth.data.cells import Problem, encodable

KINDS = ".csv, .csv.gz, .parquet, .jsonl, .jsonl.gz or hf:owner/name"
_ENDINGS = (".csv", ".csv.gz", ".parquet", ".jsonl", ".ndjson", ".jsonl.gz")
PACKED_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
MEGABYTE = 2**20
SAMPLE = 100
"""Number of JSONL lines from which the columns are collected."""
PAIRS = ("chosen", "rejected")
"""Columns of benchmarks of reward models, which may hold lists of messages."""
LEFT_OUT = frozenset({"full_conversation"})
"""Columns that are never read: they repeat the conversations, and more."""

Record = tuple[int, Mapping[str, Any] | Problem]
"""Row number, from 1, and its cells, or the problem with the whole row."""
Opened = tuple[Sequence[str], Iterator[Record]]
"""Column names and all records."""


def open_source(path: str, split: str, nested: frozenset[str] = schemas.KNOWN_COLUMNS) -> Opened:
    """Open a file or a dataset.

    Args:
        path: a file, or ``hf:owner/name``.
        split: of a Hugging Face dataset.
        nested: columns that are read although they hold lists or mappings; others may be huge embeddings.

    Raises:
        UserError: at once or while records are taken: the source as a whole is unusable.
    """
    if path.startswith("hf:"):
        return _open_hub(path.removeprefix("hf:"), split, nested)
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: {_no_file(file)}; data.path takes {KINDS}")
    if file.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; a file of preferences needs a header and rows")
    name = file.name.lower()
    if name.endswith(".gz"):
        _require_gzip(file)
    if name.endswith(".parquet"):
        return _open_parquet(file, nested)
    if name.endswith((".csv", ".csv.gz")):
        return _open_csv(file)
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
        return _open_jsonl(file)
    raise UserError(f"{path}: unknown kind of file; data.path takes {KINDS}")


def _no_file(file: Path) -> str:
    """What is there instead of a file, with files that may be meant."""
    if file.is_dir():
        files = [str(inside) for inside in sorted(file.iterdir()) if inside.name.lower().endswith(_ENDINGS)]
        held = f"; it holds {', '.join(files[:3])}{', …' * (len(files) > 3)}" if files else ""
        return f"is a folder, not a file{held}"
    where = "" if file.is_absolute() else f" in {Path.cwd()}"
    beside = [near.name for near in file.parent.iterdir()] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, beside, n=1, cutoff=0.75)
    return f"no such file{where}" + (f" (did you mean {file.with_name(close[0])}?)" if close else "")


def _state(handle: BinaryIO) -> tuple[int, int]:
    status = os.fstat(handle.fileno())
    return status.st_size, status.st_mtime_ns


def _watched(file: Path, handle: BinaryIO, closing: Any, records: Iterator[Record]) -> Iterator[Record]:
    """Yield records with a progress bar; raise at the end if the file has changed in the meantime.

    Args:
        closing: what to close afterwards: ``handle`` itself or the decoder on top of it.
    """
    before = _state(handle)
    done = 0
    with closing, progress(f"reading {file.name}", before[0] // MEGABYTE, "megabyte") as bar:
        for number, record in records:
            if number % 500 == 0:
                read = handle.tell() // MEGABYTE
                bar.advance(read - done)
                done = read
            yield number, record
        after = _state(handle)
        bar.advance(before[0] // MEGABYTE - done)
    if after != before:
        raise UserError(f"{file}: changed while it was read; wait until it is complete and start again")


def _decoded(file: Path) -> tuple[BinaryIO, io.TextIOWrapper]:
    """Open a file and a decoder of its decompressed text."""
    handle = file.open("rb")
    stream: Any = gzip.GzipFile(fileobj=handle) if file.name.lower().endswith(".gz") else handle
    if handle.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        handle.close()
        raise UserError(f"{file}: is UTF-16 text; save it as UTF-8")
    return handle, io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _require_gzip(file: Path) -> None:
    with file.open("rb") as handle:
        if handle.read(2) != b"\x1f\x8b":
            raise UserError(
                f"{file}: is not compressed by gzip, although its name ends in .gz; if it is plain text, "
                f"rename it to {file.stem}, otherwise fetch it again"
            )


def _broken_download(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: {error}; the download is broken or was cut short, fetch the file again")


def _open_csv(file: Path) -> Opened:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than one long conversation
    handle, text = _decoded(file)
    # strict: an unclosed quote at the end, as a broken download leaves it, is an error and not a cell
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{file}: the header can't be read: {error}") from None
    except PACKED_ERRORS as error:
        raise _broken_download(file, error) from None
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise UserError(
            f"{file}: its columns are not separated by commas ({header[0][:60]!r}); save it with commas"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f"{file}: column {', '.join(twice)} appears twice; each name must be used once")
    return header, _watched(file, handle, text, _csv_records(file, header, reader))


def _csv_records(file: Path, header: Sequence[str], reader: Any) -> Iterator[Record]:
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except PACKED_ERRORS as error:
            raise _broken_download(file, error) from None
        except csv.Error as error:
            number += 1
            if "end of data" in str(error):
                detail = f"line {reader.line_num}: a quoted cell never ends: a broken download?"
                yield number, Problem("file ends inside the row", detail)
            else:
                yield number, Problem("broken quotes", f"line {reader.line_num}: {error}")
            continue
        if cells:
            number += 1
            problem = _csv_problem(file, header, cells, reader.line_num)
            yield number, problem or dict(zip(header, cells, strict=True))


def _csv_problem(file: Path, header: Sequence[str], cells: Sequence[str], line: int) -> Problem | None:
    row_id = cells[0] if header[0] in schemas.IDS else ""
    if len(cells) != len(header):
        detail = f"line {line}: {len(cells)} cells under {len(header)} columns"
        if len(cells) < len(header) and _is_last_line_without_end(file, cells):
            return Problem(
                "file ends inside the row", f"{detail}, and the file ends there: a broken download?", row_id
            )
        return Problem("wrong number of cells", detail, row_id)
    for name, cell in zip(header, cells, strict=True):
        if encodable(cell) is not cell:
            return Problem("not UTF-8", f"line {line}: {name} has bytes that are not UTF-8", row_id)
    return None


def _is_last_line_without_end(file: Path, cells: Sequence[str]) -> bool:
    """Whether the file's last bytes are the last of these cells."""
    ending = cells[-1].encode("utf-8", "surrogateescape")
    if not ending or file.name.lower().endswith(".gz"):
        return False
    with file.open("rb") as handle:
        handle.seek(-min(len(ending), file.stat().st_size), os.SEEK_END)
        return handle.read() == ending


def _open_jsonl(file: Path) -> Opened:
    handle, text = _decoded(file)
    records = _watched(file, handle, text, _jsonl_records(file, text))
    head = list(itertools.islice(records, SAMPLE))
    names: dict[str, None] = {}
    for _, cells in head:
        if not isinstance(cells, Problem):
            names.update(dict.fromkeys(cells))
    return list(names), itertools.chain(head, records)


def _jsonl_records(file: Path, text: io.TextIOWrapper) -> Iterator[Record]:
    number = 0
    try:
        for line in text:
            if not line.isspace():
                number += 1
                yield number, _jsonl_record(line)
    except PACKED_ERRORS as error:
        raise _broken_download(file, error) from None


def _jsonl_record(line: str) -> Mapping[str, Any] | Problem:
    if encodable(line) is not line:
        return Problem("not UTF-8", "the line has bytes that are not UTF-8")
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        if line.endswith("\n"):
            return Problem("not JSON", f"the line is not JSON: {error}")
        return Problem("file ends inside the row", f"the last line is cut off: a broken download? ({error})")
    if isinstance(record, dict):
        return record
    return Problem("not JSON", f"the line is a JSON {type(record).__name__}, not an object with columns")


def _open_parquet(file: Path, nested: frozenset[str]) -> Opened:
    import pyarrow
    import pyarrow.parquet

    handle = file.open("rb")
    try:
        table = pyarrow.parquet.ParquetFile(handle)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken_download(file, error) from None
    columns = _wanted(table.schema_arrow, nested)

    def records() -> Iterator[Record]:
        batches = table.iter_batches(batch_size=1000, columns=columns)
        try:
            yield from enumerate(itertools.chain.from_iterable(b.to_pylist() for b in batches), 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken_download(file, error) from None

    return columns, _watched(file, handle, handle, records())


def _wanted(schema: Any, nested: frozenset[str]) -> list[str]:
    """These columns, and all columns of single values."""
    import pyarrow

    return [
        column.name
        for column in schema
        if column.name in nested
        or column.name in PAIRS
        or not (pyarrow.types.is_nested(column.type) or column.name in LEFT_OUT)
    ]


def _open_hub(name: str, split: str, nested: frozenset[str]) -> Opened:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds: offline, gated, unknown, bad split
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"hf:{name} (split {split}): {type(error).__name__}: {first_line}\n"
            "  Check the name and data.split; a gated dataset needs `hf auth login`; without a network "
            "download a file and give data.path=FILE."
        ) from None
    columns = _wanted(dataset.features.arrow_schema, nested)

    def records() -> Iterator[Record]:
        batches = dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        with progress(f"reading {name}", len(dataset), "row") as bar:
            for number, cells in enumerate(rows, 1):
                yield number, cells
                bar.advance(1)

    return columns, records()
