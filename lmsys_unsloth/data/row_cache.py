"""Rows of large files, kept in the cache folder under the SHA-256 of the file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from lmsys_unsloth.core import cache
from lmsys_unsloth.data import cells, comparison, readers, schemas, sources, stored_rows
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import Layout
from lmsys_unsloth.data.sources import Rows
from lmsys_unsloth.data.stored_rows import BATCH, COLUMNS, StoredRows, to_batch

LEAST_BYTES = 4 * 2**20
"""Smallest size, in bytes, of a file that is cached: smaller ones are read faster than looked up."""


IN_MEMORY_BYTES = 2**29
"""Largest size, in bytes, of a table whose rows are all made at once, in about twice as much memory. To
make them when they are needed takes longer, as they are read about twenty times before a training."""


def read_source_cached(path: str, *, layout: Layout | Literal["auto"], split: str, soft_labels: bool) -> Rows:
    """Read a source; the rows of a large file are in the cache folder, and read from there when needed."""
    file = Path(path).expanduser()
    if not file.is_file() or file.stat().st_size < LEAST_BYTES:
        return sources.read_source(path, layout=layout, split=split, soft_labels=soft_labels)
    state = _state(file)
    with file.open("rb") as handle:
        content = hashlib.file_digest(handle, "sha256").hexdigest()
    key = {
        "what": "rows",
        "file": content,
        "kind": "".join(file.suffixes[-2:]).lower(),
        "layout": layout,
        "soft_labels": soft_labels,
        "code": cache.code_fingerprint(
            cells, comparison, readers, schemas, sources, stored_rows, sys.modules[__name__]
        ),
    }
    with cache.making(key):
        return _load_or_read(key, path, file, state, layout=layout, split=split, soft_labels=soft_labels)


def _load_or_read(
    key: Mapping[str, Any], path: str, file: Path, state: tuple[int, int, int], *,
    layout: Layout | Literal["auto"], split: str, soft_labels: bool,
) -> Rows:  # fmt: skip
    facts = cache.load({**key, "part": "facts"})
    table = None if facts is None else cache.load(key)
    if facts is not None and table is not None:
        found = json.loads(facts["facts"][0].as_py())
        return Rows(path, found["layout"], _rows(table), notes=Counter(found["notes"]))
    source, records = sources.open_rows(path, layout=layout, split=split, soft_labels=soft_labels)
    cache.save_batches(key, COLUMNS, _batches(records))
    table = cache.load(key)
    if table is None:  # the folder can't be written
        return sources.read_source(path, layout=layout, split=split, soft_labels=soft_labels)
    if not source.bad and _state(file) == state:  # else the hash may belong to an older content
        described = json.dumps({"layout": source.layout, "notes": source.notes})
        cache.save({**key, "part": "facts"}, pa.table({"facts": [described]}))
    return dataclasses.replace(source, rows=_rows(table))


def _rows(table: pa.Table) -> Sequence[Comparison]:
    rows = StoredRows.of_table(table)
    return list(rows) if table.nbytes <= IN_MEMORY_BYTES else rows


def _batches(rows: Iterator[Comparison]) -> Iterator[pa.RecordBatch]:
    while part := list(itertools.islice(rows, BATCH)):
        yield to_batch(part)


def _state(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
