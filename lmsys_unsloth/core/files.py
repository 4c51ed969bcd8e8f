"""Atomic writing of files and folders: each is complete or not there at all."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmsys_unsloth.core.errors import WriteError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your quota on this disk is used up; free some space",
    errno.EFBIG: "the file would be larger than allowed (ulimit -f)",
    errno.EROFS: "the disk is read-only; choose another directory",
    errno.EACCES: "the folder may not be written to; choose another directory, or change its permissions",
    errno.EPERM: "the folder may not be written to; choose another directory, or change its permissions",
}


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk in the block into one that names ``path``, the reason and the remedy.

    Libraries that write in other languages (torch, safetensors) report the system's error as a text only.

    Raises:
        WriteError: instead of the disk's error; others pass.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number_in(str(error))
        if number not in _REASONS:
            raise
        raise WriteError(
            f"{path}: can't be written: {_REASONS[number]}.\n  Files that were complete are unchanged."
        ) from error


def _number_in(text: str) -> int | None:
    """The system's error that a library's message quotes; None if there is none."""
    return next((number for number in _REASONS if os.strerror(number) in text), None)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; it replaces ``path`` when the block succeeds.

    If the process is killed, ``path`` is either the old or the new file, never a part of one.

    Raises:
        WriteError: the disk is full, or the folder may not be written to.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: ``value`` contains NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows as CSV, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; it replaces ``folder`` when the block succeeds.

    Raises:
        WriteError: the disk is full, or the folder may not be written to.
    """
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield work
            work.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
