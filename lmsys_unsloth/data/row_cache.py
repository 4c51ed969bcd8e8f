"""Rows of a large file, kept in the cache folder under the SHA-256 of the file."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core import cache
from lmsys_unsloth.data import cells, comparison, readers, schemas, sources
from lmsys_unsloth.data.cells import Triple
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import Layout
from lmsys_unsloth.data.sources import Rows

LEAST_BYTES = 4 * 2**20
"""Smaller files are read faster than looked up."""


def read_source_cached(path: str, *, layout: Layout | Literal["auto"], split: str, soft_labels: bool) -> Rows:
    """:func:`lmsys_unsloth.rows.sources.read_source`, faster when the same file was read before."""
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
        "code": cache.code_fingerprint(cells, comparison, readers, schemas, sources),
        "format": 1,
    }
    arrays = cache.load(key)
    if arrays is not None:
        return _unpack(arrays, path)
    rows = sources.read_source(path, layout=layout, split=split, soft_labels=soft_labels)
    if not rows.bad and _state(file) == state:  # else the hash may belong to an older content
        cache.save(key, _pack(rows))
    return rows


def _state(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _texts(row: Comparison) -> tuple[str, ...]:
    extra = json.dumps(dict(row.extra)) if row.extra else ""
    head = (row.id, row.model_a or "", row.model_b or "", extra)
    return (*head, *row.prompts, *row.responses_a, *row.responses_b)


def _pack(rows: Rows) -> dict[str, NDArray[Any]]:
    """Texts as one run of UTF-8 with the end of each; numbers as arrays of one entry a row."""
    texts = [text.encode() for row in rows.rows for text in _texts(row)]
    facts = json.dumps({"layout": rows.layout, "notes": dict(rows.notes)})
    return {
        "facts": np.array(facts),
        "text": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "turns": np.array([len(row.prompts) for row in rows.rows], dtype=np.int64),
        "labels": np.array([-1 if row.label is None else row.label for row in rows.rows], dtype=np.int8),
        "soft": _triples([row.soft_label for row in rows.rows]),
        "true": _triples([row.true_probabilities for row in rows.rows]),
    }


def _triples(values: Sequence[Triple | None]) -> NDArray[np.float64]:
    """(rows, 3), NaN where there is none."""
    return np.array([(math.nan,) * 3 if value is None else value for value in values], dtype=np.float64)


def _unpack(arrays: dict[str, NDArray[Any]], path: str) -> Rows:
    facts = json.loads(str(arrays["facts"]))
    blob, start = arrays["text"].tobytes(), 0
    texts: list[str] = []
    for end in arrays["ends"].tolist():
        texts.append(blob[start:end].decode())
        start = end
    rows: list[Comparison] = []
    position = 0
    columns = (
        arrays["turns"].tolist(),
        arrays["labels"].tolist(),
        arrays["soft"].tolist(),
        arrays["true"].tolist(),
    )
    for turns, label, soft, true in zip(*columns, strict=True):
        row_id, model_a, model_b, extra = texts[position : position + 4]
        first = position + 4
        position = first + 3 * turns
        rows.append(
            Comparison(
                row_id,
                tuple(texts[first : first + turns]),
                tuple(texts[first + turns : first + 2 * turns]),
                tuple(texts[first + 2 * turns : position]),
                None if label < 0 else label,
                None if math.isnan(soft[0]) else tuple(soft),
                None if math.isnan(true[0]) else tuple(true),
                model_a or None,
                model_b or None,
                json.loads(extra) if extra else {},
            )
        )
    return Rows(path, facts["layout"], rows, notes=Counter(facts["notes"]))
