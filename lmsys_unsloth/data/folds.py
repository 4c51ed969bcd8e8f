"""Division of rows into folds: stratified by label, grouped by prompt and columns, seeded and saved."""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_csv
from lmsys_unsloth.data.cells import is_missing
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.duplicates import join_groups

SESSION = "evaluation_session_id"
"""Column of the arena datasets that is always grouped by: one person's comparisons in one session."""


@dataclass(frozen=True, slots=True)
class Folds:
    """Fold and group of each row."""

    of_row: NDArray[np.int64]
    """``[rows]`` fold of each row, in file order."""
    groups: NDArray[np.int64]
    """``[rows]``: rows with equal numbers share a fold."""
    count: int


def grouping_columns(rows: Sequence[Comparison], group_by: Sequence[str]) -> list[str]:
    """Return the columns to group by: those named, and :data:`SESSION` where it exists.

    Raises:
        UserError: no row has a named column.
    """
    found = {name for row in rows for name in row.extra}
    unknown = [name for name in group_by if name not in found]
    if unknown:
        listed = ", ".join(sorted(found)) or "none"
        raise UserError(
            f"data.group_by = [{', '.join(group_by)}]: no row has the column "
            f"{', '.join(unknown)}; name further columns of the file, which has {listed}"
        )
    return [*group_by, *(name for name in (SESSION,) if name in found and name not in group_by)]


def group_rows(
    rows: Sequence[Comparison], prompts: NDArray[np.int64], columns: Sequence[str]
) -> NDArray[np.int64]:
    """Join groups of rows with similar prompts that share a value in any column.

    Args:
        rows: rows with the columns in their ``extra``.
        prompts: ``[rows]`` group of each row's prompt, from
            :func:`~lmsys_unsloth.data.duplicates.find_similar`.
        columns: from :func:`grouping_columns`; missing and empty values connect nothing.

    Returns:
        ``[rows]`` group of each row.
    """
    if not columns:
        return prompts
    values = [[row.extra.get(name) for row in rows] for name in columns]
    return join_groups(prompts, [[None if is_missing(v) else str(v) for v in column] for column in values])


def make_folds(
    rows: Sequence[Comparison], groups: NDArray[np.int64], count: int, seed: int, grouped_by: str = "prompt"
) -> Folds:
    """Assign every row to one of ``count`` folds; the same input and seed give the same folds.

    Args:
        rows: labelled rows.
        groups: ``[rows]`` group of each row.
        count: number of folds.
        seed: seed of the shuffling.
        grouped_by: what the rows of a group share, for messages.

    Raises:
        UserError: a fold would be empty.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    distinct = len(np.unique(groups))
    if distinct < count:
        raise UserError(
            f"data.folds = {count}: the {len(rows):,} rows form only {distinct} groups by {grouped_by}, and "
            "rows of one group share a fold; lower data.folds (2 or more) or give more rows"
        )
    labels = np.array([row.label for row in rows])
    most = int(np.unique(labels, return_counts=True)[1].max())
    if most < count:
        raise UserError(
            f"data.folds = {count}: no outcome has that many rows (the most frequent has {most}), so they "
            f"can't be spread over folds; lower data.folds (2 to {max(most, 2)}) or give more rows"
        )
    of_row = np.empty(len(rows), dtype=np.int64)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an outcome is rarer than folds: data.json shows it
        for fold, (_, members) in enumerate(splitter.split(np.zeros(len(rows)), labels, groups)):
            of_row[members] = fold
    return Folds(of_row, groups, count)


def folds_fingerprint(rows: Sequence[Comparison], of_row: NDArray[np.int64]) -> str:
    """Compute a SHA-256 of the assignment that does not depend on the order of the rows."""
    pairs = sorted(zip([row.id for row in rows], of_row.tolist(), strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def save_folds(path: Path, rows: Sequence[Comparison], folds: Folds) -> None:
    """Write ``id, fold, group``, one line per row in file order."""
    ids = [row.id for row in rows]
    lines = zip(ids, folds.of_row.tolist(), folds.groups.tolist(), strict=True)
    write_csv(path, ("id", "fold", "group"), lines)


def load_folds(path: Path, rows: Sequence[Comparison], groups: NDArray[np.int64], count: int) -> Folds:
    """Load folds saved by an earlier run, for the same rows in any order.

    Raises:
        UserError: no such file, rows without a fold, or another number of folds than ``count``.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            saved = {line["id"]: int(line["fold"]) for line in csv.DictReader(file)}
    except OSError as error:
        raise UserError(
            f"data.fold_file = {path}: {error.strerror}; give the folds.csv of an earlier run"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"data.fold_file = {path}: needs the columns id and fold (a whole number)") from None
    unknown = [row.id for row in rows if row.id not in saved]
    if unknown:
        raise UserError(
            f"data.fold_file = {path}: {len(unknown)} of {len(rows)} rows have no fold there (ids "
            f"{', '.join(unknown[:10])}); it belongs to other data, or new rows were added: set "
            "data.fold_file=null to make new folds"
        )
    of_row = np.array([saved[row.id] for row in rows], dtype=np.int64)
    outside = sorted(set(of_row.tolist()) - set(range(count)))
    if outside:
        raise UserError(
            f"data.fold_file = {path}: has folds {outside}, but data.folds = {count}; make them agree"
        )
    return Folds(of_row, groups, count)


def balance(rows: Sequence[Comparison]) -> dict[str, int]:
    """Count rows per outcome: ``{"a": 34, "b": 33, "tie": 33}``, and ``unlabelled`` if there are any."""
    names: dict[int | None, str] = {0: "a", 1: "b", 2: "tie", None: "unlabelled"}
    counts = Counter(row.label for row in rows)
    return {name: counts[label] for label, name in names.items() if label is not None or counts[None]}
