"""The cache returns what was saved under exactly the same key, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmsys_unsloth.core import cache

KEY: dict[str, Any] = {"rows": "abc", "template": {"answers": [" A", " B"]}, "tokenizer": "xyz", "code": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path))
    return tmp_path


def test_saved_arrays_come_back_equal() -> None:
    arrays = {"ids": np.arange(7, dtype=np.int32), "names": np.array(["a", "é"])}
    cache.save(KEY, arrays)
    loaded = cache.load({name: KEY[name] for name in reversed(KEY)})
    assert loaded is not None and loaded.keys() == arrays.keys()
    assert loaded["ids"].dtype == np.int32 and loaded["ids"].tolist() == list(range(7))
    assert loaded["names"].tolist() == ["a", "é"]


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
def test_any_change_of_the_key_misses(change: dict[str, Any]) -> None:
    cache.save(KEY, {"ids": np.arange(3)})
    assert cache.load(KEY | change) is None


def test_a_result_stored_under_another_key_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(KEY, {"ids": np.arange(3)})
    path = cache._path(cache._canonical(KEY))
    monkeypatch.setattr(cache, "_path", lambda canonical: path)  # as if the hashes of two keys were equal
    assert cache.load(KEY) is not None
    assert cache.load(KEY | {"code": 2}) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_counts_as_absent(folder: Path, damage: str) -> None:
    cache.save(KEY, {"ids": np.arange(10_000)})
    (file,) = folder.rglob("*.npz")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 255
    file.write_bytes({"cut": content[:middle], "flip": content, "empty": b"", "text": b"hello"}[damage])
    assert cache.load(KEY) is None
    cache.save(KEY, {"ids": np.arange(2)})
    assert cache.load(KEY) is not None


def test_python_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="numbers or text"):
        cache.save(KEY, {"ids": np.array([{}], dtype=object)})


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = folder / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(blocked))
    cache.save(KEY, {"ids": np.arange(3)})
    assert cache.load(KEY) is None


def test_the_results_used_longest_ago_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3000)
    for number in range(4):
        cache.save({"number": number}, {"ids": np.zeros(100)})
        os.utime(cache._path(cache._canonical({"number": number})), (number, number))
    kept = [number for number in range(4) if cache.load({"number": number}) is not None]
    assert kept == [2, 3] or kept == [3]
