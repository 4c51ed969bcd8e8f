"""Which fold a row belongs to: stratified by label, grouped by prompt, seeded, saved, checked for leaks."""

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
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.data.comparison import Comparison


@dataclass(frozen=True, slots=True)
class Folds:
    """A row's place among the folds."""

    of_row: NDArray[np.int64]
    """(rows,) fold of each row, in file order."""
    groups: NDArray[np.int64]
    """(rows,) rows with equal numbers have the same prompt, or nearly: they share a fold."""
    count: int


def prompt_text(row: Comparison) -> str:
    """What two rows must share to be in one group: everything the user said."""
    return "\n".join(row.prompts)


def make_folds(rows: Sequence[Comparison], groups: NDArray[np.int64], count: int, seed: int) -> Folds:
    """Assign every row to one of ``count`` folds; the same input and seed give the same folds.

    Args:
        rows: labelled rows.
        groups: (rows,) group of each row, from :func:`lmsys_unsloth.rows.duplicates.find_similar`.

    Raises:
        UserError: a fold would be empty.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    distinct = len(np.unique(groups))
    if distinct < count:
        raise UserError(
            f"data.folds = {count}: the {len(rows):,} rows have only {distinct} different prompts, and rows "
            "that share a prompt share a fold; lower data.folds (2 or more) or give more rows"
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
        warnings.simplefilter("ignore", UserWarning)  # some outcome is rarer than folds: seen in data.json
        for fold, (_, members) in enumerate(splitter.split(np.zeros(len(rows)), labels, groups)):
            of_row[members] = fold
    return Folds(of_row, groups, count)


def folds_fingerprint(rows: Sequence[Comparison], of_row: NDArray[np.int64]) -> str:
    """SHA-256 of the assignment, whatever the order of rows: equal means that scores may be merged."""
    pairs = sorted(zip([row.id for row in rows], of_row.tolist(), strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def save_folds(path: Path, rows: Sequence[Comparison], folds: Folds) -> None:
    """Write ``id, fold, group``, one line per row in file order."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "fold", "group"))
        for row, fold, group in zip(rows, folds.of_row.tolist(), folds.groups.tolist(), strict=True):
            writer.writerow((row.id, fold, group))


def load_folds(path: Path, rows: Sequence[Comparison], groups: NDArray[np.int64], count: int) -> Folds:
    """Folds saved by an earlier run, for the same rows in any order.

    Raises:
        UserError: no such file, rows without a fold, or another number of folds than asked for.
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
        shown = ", ".join(unknown[:10])
        raise UserError(
            f"data.fold_file = {path}: {len(unknown)} of {len(rows)} rows have no fold there (ids {shown}); "
            "it belongs to other data, or new rows were added: set data.fold_file=null to make new folds"
        )
    of_row = np.array([saved[row.id] for row in rows], dtype=np.int64)
    outside = sorted(set(of_row.tolist()) - set(range(count)))
    if outside:
        raise UserError(
            f"data.fold_file = {path}: has folds {outside}, but data.folds = {count}; make them agree"
        )
    return Folds(of_row, groups, count)


def balance(rows: Sequence[Comparison]) -> dict[str, int]:
    """Rows per outcome: ``{"a": 34, "b": 33, "tie": 33}``, and ``unlabelled`` when there are such."""
    names: dict[int | None, str] = {0: "a", 1: "b", 2: "tie", None: "unlabelled"}
    counts = Counter(row.label for row in rows)
    return {name: counts[label] for label, name in names.items() if label is not None or counts[None]}
