"""The cache returns the table that was saved under exactly the same key, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lmsys_unsloth.core import cache

KEY: dict[str, Any] = {"rows": "abc", "template": {"answers": [" A", " B"]}, "tokenizer": "xyz", "code": 1}
TABLE = pa.table({"ids": pa.array([1, 2, 3], pa.int32())})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path))
    return tmp_path


def test_a_saved_table_is_loaded_with_its_types_and_metadata() -> None:
    columns = {
        "ids": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
        "texts": pa.array(["a", "é", None]),
        "shares": pa.array([0.1, float("nan"), None]),
    }
    table = pa.table(columns, metadata={"note": "kept"})
    cache.save(KEY, table)
    loaded = cache.load({name: KEY[name] for name in reversed(KEY)})
    assert loaded is not None and loaded.schema.equals(table.schema)
    assert loaded.schema.metadata[b"note"] == b"kept"
    assert str(loaded.to_pydict()) == str(table.to_pydict())  # as text, because NaN does not equal itself


def test_an_empty_table_is_loaded_as_an_empty_table() -> None:
    cache.save(KEY, TABLE.slice(0, 0))
    loaded = cache.load(KEY)
    assert loaded is not None and loaded.num_rows == 0 and loaded.schema.equals(TABLE.schema)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "abd"},
        {"template": {"answers": [" A", " B "]}},
        {"tokenizer": "xyy"},
        {"code": 2},
        {"code": "1"},
        {"more": None},
    ],
)
def test_no_table_is_found_under_a_changed_key(change: dict[str, Any]) -> None:
    cache.save(KEY, TABLE)
    assert cache.load(KEY | change) is None


def test_a_table_of_another_key_is_not_returned_when_hashes_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(KEY, TABLE)
    path = cache._path(cache._canonical(KEY))
    monkeypatch.setattr(cache, "_path", lambda canonical: path)
    assert cache.load(KEY) is not None
    assert cache.load(KEY | {"code": 2}) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "flipped digest", "empty", "text"])
def test_a_damaged_file_counts_as_absent(folder: Path, damage: str) -> None:
    cache.save(KEY, TABLE)
    (file,) = folder.rglob("*.table")
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = bytes([*content[:middle], content[middle] ^ 255, *content[middle + 1 :]])
    digest = bytes([content[0] ^ 1, *content[1:]])
    file.write_bytes(
        {"cut": content[:middle], "flip": flipped, "flipped digest": digest, "empty": b"", "text": b"hello"}[
            damage
        ]
    )
    assert cache.load(KEY) is None
    cache.save(KEY, TABLE)
    assert cache.load(KEY) is not None


def test_a_key_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        cache.save(KEY | {"file": Path("x")}, TABLE)
    with pytest.raises(ValueError):
        cache.save(KEY | {"threshold": float("nan")}, TABLE)


def test_a_remembered_table_is_made_once() -> None:
    made: list[int] = []

    def make() -> pa.Table:
        made.append(1)
        return TABLE

    assert cache.remember(KEY, make, keep=False).equals(TABLE)
    assert cache.load(KEY) is None
    assert [cache.remember(KEY, make).equals(TABLE) for _ in range(2)] == [True, True]
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = folder / "file"
    blocked.write_text("a file where a folder is expected")
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(blocked))
    cache.save(KEY, TABLE)
    assert cache.load(KEY) is None


def test_the_tables_used_longest_ago_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        cache.save({"number": number}, TABLE)
        os.utime(cache._path(cache._canonical({"number": number})), (number, number))
    assert cache.load({"number": 0}) is not None  # now used last
    size = max(file.stat().st_size for file in folder.rglob("*.table"))
    monkeypatch.setattr(cache, "LIMIT_BYTES", int(2.5 * size))
    cache.save({"number": 3}, TABLE)
    assert [number for number in range(4) if cache.load({"number": number}) is not None] == [0, 3]
