"""Preference files for tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.sources import Rows, read_source


def record(row_id: str = "1", **changes: Any) -> dict[str, Any]:
    """A row of the Kaggle schema; texts may be given as lists of turns."""
    cells: dict[str, Any] = {
        "id": row_id,
        "model_a": "alpha",
        "model_b": "beta",
        "prompt": ["Hi"],
        "response_a": ["Hello"],
        "response_b": ["Yo"],
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    }
    cells |= changes
    return {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in cells.items()}


def labelled(row_id: str, prompt: str, label: int) -> Comparison:
    """A row with one turn."""
    return Comparison(row_id, (prompt,), (f"answer a to {prompt}",), (f"answer b to {prompt}",), label)


def write_csv(path: Path, records: Sequence[Mapping[str, Any]], **options: Any) -> Path:
    """Write records under the columns of the first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), **options)
        writer.writeheader()
        writer.writerows(records)
    return path


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_all(path: Path | str, **options: Any) -> Rows:
    """:func:`lmsys_unsloth.data.sources.read_source` with the shipped settings."""
    return read_source(str(path), **({"layout": "auto", "split": "train", "soft_labels": True} | options))


def read_records(folder: Path, *records: Mapping[str, Any], **options: Any) -> Rows:
    """Write records as CSV and read them again."""
    return read_all(write_csv(folder / "rows.csv", records), **options)
