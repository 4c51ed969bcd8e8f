"""Tables of results that are costly to compute again, found by everything that they were computed from.

A key holds the complete input of a result, never a name or a date::

    key = {"what": "tokens", "rows": fingerprint(rows), "template": text, "code": code_fingerprint(module)}
    table = load(key)
    if table is None:
        table = pyarrow.table({"input_ids": ids})
        save(key, table)

Two different keys never share a result: the key itself is stored with the table and compared when it is
loaded. A file holds a SHA-256 and the table as an Arrow stream (nothing is unpickled); it is
written whole or not at all, and a damaged one counts as absent. A loaded table is memory-mapped, so that its
pages are read when they are needed and given back when memory is short.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from lmsys_unsloth.core.files import replacing

LIMIT_BYTES = 32 * 2**30
"""Size of the folder in bytes; beyond it the results that were used longest ago are removed, but not the one
that was used last."""
DIGEST_BYTES = 32
"""Length of the SHA-256 at the start of a file."""


def cache_dir() -> Path:
    """Folder for what can be made again: ``$LMSYS_UNSLOTH_CACHE``, else the user's cache folder."""
    explicit = os.environ.get("LMSYS_UNSLOTH_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "lmsys_unsloth"


def load(key: Mapping[str, Any]) -> pa.Table | None:
    """Load the table saved under exactly this key; None when there is none or its file is damaged.

    Args:
        key: everything that the table depends on, as JSON can hold it.
    """
    canonical = _canonical(key)
    path = _path(canonical)
    try:
        with path.open("rb") as file:
            digest = file.read(DIGEST_BYTES)
            # read, not mapped: pages of a mapped file count as memory of the process
            if hashlib.file_digest(file, "sha256").digest() != digest:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.utime(path)  # used just now, so removed last
    except OSError:
        return None
    table = pa.ipc.open_stream(pa.py_buffer(mapped)[DIGEST_BYTES:]).read_all()
    return table if table.schema.metadata[b"key"] == canonical.encode() else None


def save(key: Mapping[str, Any], table: pa.Table) -> None:
    """Keep a table under a key, in place of an earlier one.

    A full or read-only disk is no reason to stop a run: then nothing is kept.
    """
    save_batches(key, table.schema, table.to_batches())


def save_batches(key: Mapping[str, Any], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Keep a table as :func:`save` does, in batches that are written one by one and may exceed memory."""
    canonical = _canonical(key)
    schema = schema.with_metadata({**(schema.metadata or {}), "key": canonical})
    path = _path(canonical)
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                file.write(bytes(DIGEST_BYTES))
                with pa.ipc.new_stream(file, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            with temporary.open("r+b") as file:
                file.seek(DIGEST_BYTES)
                digest = hashlib.file_digest(file, "sha256").digest()
                file.seek(0)
                file.write(digest)
        _prune(path.parent)
    except OSError:
        return


@contextlib.contextmanager
def making(key: Mapping[str, Any]) -> Iterator[None]:
    """Let one process after the other into the block, so that jobs which start together make a table once.

    Within it, :func:`load` finds what an earlier process has saved. Where the folder can't be written,
    nothing is saved, and no process waits.
    """
    from filelock import FileLock

    path = _path(_canonical(key))
    lock = FileLock(path.with_name(f"{path.name[:2]}.lock"))  # few names, as locks are never deleted
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # the latter where a network disk has no locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def remember(key: Mapping[str, Any], make: Callable[[], pa.Table], keep: bool = True) -> pa.Table:
    """Load a table, or make and save it.

    Args:
        keep: false for results that are made faster than loaded.
    """
    if not keep:
        return make()
    table = load(key)
    if table is None:
        table = make()
        save(key, table)
    return table


def code_fingerprint(*modules: ModuleType) -> str:
    """SHA-256 of the source of modules: with it in the key, results of older code are not found."""
    sources = [Path(module.__file__).read_bytes() for module in modules if module.__file__]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def _canonical(key: Mapping[str, Any]) -> str:
    """The key as text that does not depend on the order of its parts.

    Raises:
        TypeError: the key holds what JSON can't hold.
    """
    return json.dumps(key, sort_keys=True, ensure_ascii=True, allow_nan=False)


def _path(canonical: str) -> Path:
    return cache_dir() / "tables" / f"{hashlib.sha256(canonical.encode()).hexdigest()}.table"


def _prune(folder: Path) -> None:
    newest_first = sorted(folder.glob("*.table"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for number, file in enumerate(newest_first):
        total += file.stat().st_size
        if number and total > LIMIT_BYTES:
            file.unlink(missing_ok=True)
