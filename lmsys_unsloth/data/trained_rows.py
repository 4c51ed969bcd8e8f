"""Which rows a run was trained on, by content: the same row is recognised in any file and under any id."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.duplicates import content_key, normalised
from lmsys_unsloth.data.folds import prompt_text

COLUMNS = ("id", "prompt_sha256", "content_sha256")


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """Hashes of training rows; texts are compared without case and white space, answers in either order."""

    prompts: frozenset[tuple[str, str]]
    """Id and prompt hash of each row."""
    contents: frozenset[str]
    """Hash of prompt and both answers of each row."""

    def __contains__(self, row: Comparison) -> bool:
        """Whether the row was trained on: same texts under any id, or same prompt under the same id."""
        return _content_hash(row) in self.contents or (row.id, _prompt_hash(row)) in self.prompts

    def __or__(self, other: TrainedRows) -> TrainedRows:
        """Rows of either run."""
        return TrainedRows(self.prompts | other.prompts, self.contents | other.contents)


def save_trained_rows(path: Path, rows: Sequence[Comparison]) -> None:
    """Write ``id, prompt_sha256, content_sha256``, one line for each training row."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((row.id, _prompt_hash(row), _content_hash(row)) for row in rows)


def load_trained_rows(path: Path) -> TrainedRows:
    """Read what :func:`save_trained_rows` wrote.

    Raises:
        UserError: the file is missing or has other columns, so nothing is known about the training rows.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [[line[name] for name in COLUMNS] for line in csv.DictReader(file)]
    except (OSError, KeyError) as error:
        raise UserError(
            f"{path}: can't be read ({type(error).__name__}), so rows that this run was trained on can't be "
            "recognised.\n  Restore the file, or score all rows with eval.trained_rows=include."
        ) from None
    return TrainedRows(
        frozenset((row_id, prompt) for row_id, prompt, _ in lines),
        frozenset(content for _, _, content in lines),
    )


def _prompt_hash(row: Comparison) -> str:
    return hashlib.sha256(normalised(prompt_text(row)).encode("utf-8", "surrogatepass")).hexdigest()


def _content_hash(row: Comparison) -> str:
    return hashlib.sha256("\0".join(content_key(row)).encode("utf-8", "surrogatepass")).hexdigest()
