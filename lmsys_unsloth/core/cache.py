"""Results that are costly to make again, kept by the content they were made from.

A result is found under *everything* it depends on, never under a name or a date::

    key = {"what": "tokens", "rows": fingerprint(rows), "template": text, "tokenizer": sha, "code": 1}
    arrays = load(key)
    if arrays is None:
        arrays = {"ids": flat_ids, "ends": ends}
        save(key, arrays)

Two different keys never share a result: the key itself is stored beside the arrays and compared
when they are loaded. ``code`` stands for the code that makes the arrays: a number to be raised, or
:func:`code_fingerprint`. Files are written whole or not at all, hold no Python objects (nothing is
unpickled) and a damaged one counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.files import replacing


def cache_dir() -> Path:
    """Folder for what can be made again: ``$LMSYS_UNSLOTH_CACHE``, else the user's cache folder."""
    explicit = os.environ.get("LMSYS_UNSLOTH_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "lmsys_unsloth"


LIMIT_BYTES = 8 * 2**30
"""Results used longest ago are removed when all together pass this."""
KEY = "__key__"


def load(key: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """Arrays saved under exactly this key, or None.

    Args:
        key: everything the arrays depend on: text, whole numbers, floats, booleans, None, and
            lists and mappings of these.
    """
    path = _path(_canonical(key))
    try:
        with np.load(path, allow_pickle=False) as saved:
            if str(saved[KEY]) != _canonical(key):
                return None
            arrays = {name: saved[name] for name in saved.files if name != KEY}
        os.utime(path)  # now the last to be removed
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return arrays


def save(key: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays of numbers or text under a key, in place of what was there.

    A full or read-only disk is no reason to stop a run: then nothing is kept.
    """
    if KEY in arrays or any(array.dtype.hasobject for array in arrays.values()):
        raise ValueError(f"arrays must hold numbers or text, under names other than {KEY}")
    canonical = _canonical(key)
    try:
        with replacing(_path(canonical)) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{KEY: np.array(canonical)}, **arrays)
        _prune(_path(canonical).parent)
    except OSError:
        return


def remember(
    key: Mapping[str, Any], make: Callable[[], Mapping[str, NDArray[Any]]], keep: bool = True
) -> Mapping[str, NDArray[Any]]:
    """Saved arrays, or newly made ones, which are then saved.

    Args:
        keep: false for results so small that making them again is cheaper than a file.
    """
    if not keep:
        return make()
    arrays = load(key)
    if arrays is None:
        made = make()
        save(key, made)
        return made
    return arrays


def code_fingerprint(*modules: ModuleType) -> str:
    """SHA-256 of the source of modules: put it in a key, and editing them makes old results unfindable."""
    sources = [Path(module.__file__).read_bytes() for module in modules if module.__file__]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def _canonical(key: Mapping[str, Any]) -> str:
    """The key as text, the same whatever the order of its parts; refuses what JSON can't hold."""
    return json.dumps(key, sort_keys=True, ensure_ascii=True, allow_nan=False)


def _path(canonical: str) -> Path:
    return cache_dir() / "arrays" / f"{hashlib.sha256(canonical.encode()).hexdigest()}.npz"


def _prune(folder: Path) -> None:
    files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("*.npz")), reverse=True)
    total = 0
    for _, size, file in files:
        total += size
        if total > LIMIT_BYTES:
            file.unlink(missing_ok=True)
