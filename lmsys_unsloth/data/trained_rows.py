"""Rows that a run was trained on, recognised by content in any file and under any id."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_csv
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.duplicates import content_key

COLUMNS = ("id", "prompt_sha256", "content_sha256")


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """Hashes of training rows.

    Texts are compared as by :func:`~lmsys_unsloth.data.duplicates.normalised`, responses in either order.
    """

    prompts: frozenset[tuple[str, str]]
    """Id and prompt hash of each row."""
    contents: frozenset[str]
    """Hash of the prompt and both responses of each row."""

    def __contains__(self, row: Comparison) -> bool:
        """Whether a training row has the same prompt and responses, or the same id and prompt."""
        prompt, content = _hashes(row)
        return content in self.contents or (row.id, prompt) in self.prompts


def save_trained_rows(path: Path, rows: Iterable[Comparison], earlier: Path | None = None) -> None:
    """Write ``id, prompt_sha256, content_sha256``, one line for each training row.

    Args:
        path: file to write.
        rows: training rows.
        earlier: the same file of the run whose adapters training starts from; its lines are repeated, because
            they were trained on those rows too.
    """
    lines = [(row.id, *_hashes(row)) for row in rows]
    write_csv(path, COLUMNS, dict.fromkeys([*lines, *(_read(earlier) if earlier else ())]))


def load_trained_rows(paths: Iterable[Path]) -> TrainedRows:
    """Read the training rows of one or several runs.

    Args:
        paths: files that :func:`save_trained_rows` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    prompts: set[tuple[str, str]] = set()
    contents: set[str] = set()
    for path in paths:
        for row_id, prompt, content in _read(path):
            prompts.add((row_id, prompt))
            contents.add(content)
    return TrainedRows(frozenset(prompts), frozenset(contents))


def count_trained(path: Path, rows: Iterable[Comparison]) -> int:
    """Count the rows that a run was trained on; ``path`` is its ``training_rows.csv``."""
    trained = load_trained_rows([path])
    return sum(row in trained for row in rows)


def _read(path: Path) -> list[tuple[str, str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        if tuple(header) != COLUMNS:
            raise ValueError
        return [(row_id, prompt, content) for row_id, prompt, content in lines]
    except (OSError, ValueError, csv.Error) as error:
        problem = error.strerror if isinstance(error, OSError) else "damaged"
        raise UserError(
            f"{path}: {problem}, so rows that this run was trained on can't be recognised.\n"
            "  Restore the file. To score all rows: eval.trained_rows=include."
        ) from None


def _hashes(row: Comparison) -> tuple[str, str]:
    """SHA-256 of the prompt, and of the prompt and both responses."""
    key = content_key(row)
    prompt, content = (hashlib.sha256(text.encode()).hexdigest() for text in (key[0], "\0".join(key)))
    return prompt, content
