"""Rows of large files, kept in the cache folder under the SHA-256 of the file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pyarrow as pa

from lmsys_unsloth.core import cache
from lmsys_unsloth.data import cells, comparison, readers, schemas, sources
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import Layout
from lmsys_unsloth.data.sources import Rows

LEAST_BYTES = 4 * 2**20
"""Smallest size, in bytes, of a file that is cached: smaller ones are read faster than looked up."""

_TURNS, _PROBABILITIES = pa.list_(pa.large_string()), pa.list_(pa.float64())
COLUMNS = pa.schema(
    {
        "id": pa.string(),
        "prompts": _TURNS,
        "responses_a": _TURNS,
        "responses_b": _TURNS,
        "label": pa.int8(),
        "soft_label": _PROBABILITIES,
        "true_probabilities": _PROBABILITIES,
        "model_a": pa.string(),
        "model_b": pa.string(),
        "extra": pa.string(),
        "both_bad": pa.bool_(),
    }
)
"""Fields of :class:`Comparison`; ``extra`` is JSON."""


def read_source_cached(path: str, *, layout: Layout | Literal["auto"], split: str, soft_labels: bool) -> Rows:
    """Read a source; a file that was read before is loaded from the cache folder."""
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
        "code": cache.code_fingerprint(cells, comparison, readers, schemas, sources, sys.modules[__name__]),
    }
    stored = cache.load(key)
    if stored is not None:
        return _from_table(stored, path)
    rows = sources.read_source(path, layout=layout, split=split, soft_labels=soft_labels)
    if not rows.bad and _state(file) == state:  # else the hash may belong to an older content
        cache.save(key, _to_table(rows))
    return rows


def _state(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _to_table(rows: Rows) -> pa.Table:
    """Rows as a table; layout and notes are in its metadata."""
    columns = {name: [getattr(row, name) for row in rows.rows] for name in COLUMNS.names}
    columns["extra"] = [json.dumps(dict(extra)) for extra in columns["extra"]]
    facts = json.dumps({"layout": rows.layout, "notes": rows.notes})
    return pa.table(columns, COLUMNS.with_metadata({"facts": facts}))


def _from_table(table: pa.Table, path: str) -> Rows:
    facts = json.loads(table.schema.metadata[b"facts"])
    rows = [
        Comparison(
            id=row["id"],
            prompts=tuple(row["prompts"]),
            responses_a=tuple(row["responses_a"]),
            responses_b=tuple(row["responses_b"]),
            label=row["label"],
            soft_label=row["soft_label"] and tuple(row["soft_label"]),
            true_probabilities=row["true_probabilities"] and tuple(row["true_probabilities"]),
            model_a=row["model_a"],
            model_b=row["model_b"],
            extra=json.loads(row["extra"]),
            both_bad=row["both_bad"],
        )
        for row in table.to_pylist()
    ]
    return Rows(path, facts["layout"], rows, notes=Counter(facts["notes"]))
