"""Soft labels of a teacher: the probabilities that earlier runs predicted for this run's training rows.

The target of a row is ``(1 - weight) * own + weight * teacher``, where ``own`` is its label one-hot or its
own soft label. Cross-entropy against this mixture has the gradient of ``(1 - weight)`` times the
cross-entropy with ``own`` plus ``weight`` times the Kullback-Leibler divergence from the teacher (Hinton et
al. 2015, arXiv:1503.02531, at temperature 1): the two losses differ by the teacher's entropy, a constant.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data import cells
from lmsys_unsloth.data.cells import CellError, Triple
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.dataset import FoldData
from lmsys_unsloth.data.schemas import PROBABILITIES
from lmsys_unsloth.data.trained_rows import count_trained

log = logging.getLogger(__name__)

COLUMNS = ("id", *PROBABILITIES)
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Teacher:
    """Predictions of a teacher, and what is known about their origin."""

    source: str
    """Value of ``data.soft_labels``."""
    file: Path
    probabilities: Mapping[str, Triple]
    """By id, in ``LABELS`` order; each sums to 1."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Label of each row that the teacher was scored on, where the file has them."""
    folds: Mapping[str, int] = field(default_factory=dict)
    """Fold of each row that was predicted as a validation row; empty if they were not."""
    fingerprint: str | None = None
    """Fingerprint of the predicted data; None if it is not known."""
    runs: tuple[Run, ...] = ()
    """Runs whose adapters made the predictions; empty if they are not known."""


def use_teacher(
    source: str, fold: FoldData, held_out: Sequence[Comparison], run: Run, *, weight: float
) -> tuple[list[Comparison], dict[str, Any]]:
    """Mix the probabilities of a teacher into the targets of the training rows.

    Args:
        source: a run directory, the directory of a cross-validation, or a Parquet file with the columns
            ``id, p_a, p_b, p_tie``.
        fold: rows of the student's fold.
        held_out: validation rows, which no teacher may have been trained on.
        run: the student's directory, with its ``folds.csv``.
        weight: of the teacher in the target, 0 to 1.

    Returns:
        The training rows with their targets as ``soft_label``, and an entry for ``data.json``.

    Raises:
        UserError: the file is unusable or belongs to other data, rows are missing from it, or the teacher was
            trained on ``held_out``.
    """
    teacher = load_teacher(source)
    own_folds = _read_folds(run)
    _require_same_data(teacher, fold)
    kept = _require_all_rows(teacher, fold.train, own_folds)
    warnings = [] if not held_out else _require_unseen(teacher, held_out, own_folds)
    if kept:
        warnings.append(
            f"{source} lacks {len(kept):,} rows of data.extra, which keep their own soft labels: "
            f"{_listed(kept)}"
        )
    for warning in warnings:
        log.warning("%s", warning)
    known = teacher.probabilities
    train = [mixed(row, known[row.id], weight) if row.id in known else row for row in fold.train]
    unlabelled = sum(row.label is None and row.soft_label is None for row in fold.train)
    predicted_by = "cross-validation" if teacher.folds else "runs" if teacher.runs else "unknown"
    log.info(
        "soft labels of %s for %d training rows, weight %g (%d of the rows have no label of their own)",
        source, len(train) - len(kept), weight, unlabelled,
    )  # fmt: skip
    return train, {
        "source": source,
        "sha256": hashlib.sha256(teacher.file.read_bytes()).hexdigest(),
        "weight": weight,
        "rows": len(train) - len(kept),
        "rows_without_own_label": unlabelled,
        "rows_with_own_soft_label_only": len(kept),
        "predicted_by": predicted_by,
        "runs": [str(member.path) for member in teacher.runs],
        "warnings": warnings,
    }


def mixed(row: Comparison, teacher: Triple, weight: float) -> Comparison:
    """The row with its target as soft label: the teacher alone if the row has no label of its own.

    >>> mixed(Comparison("7", ("Hi",), ("Hello!",), ("Yo",), label=0), (0.5, 0.25, 0.25), 0.5).soft_label
    (0.75, 0.125, 0.125)
    """
    own = row.soft_label
    if own is None and row.label is None:
        return dataclasses.replace(row, soft_label=teacher)
    if own is None:
        own = (float(row.label == 0), float(row.label == 1), float(row.label == 2))
    a, b, tie = ((1 - weight) * p + weight * q for p, q in zip(own, teacher, strict=True))
    return dataclasses.replace(row, soft_label=(a, b, tie))


def load_teacher(source: str) -> Teacher:
    """Read a teacher's predictions.

    Raises:
        UserError: no such file, not Parquet, a missing column, an id used twice, or values that are not
            probabilities.
    """
    path = Path(source).expanduser()
    file = Run(path).predictions if path.is_dir() else path
    table = _read_table(source, file)
    probabilities: dict[str, Triple] = {}
    bad: list[str] = []
    ids: list[str] = []
    for record in table.select(COLUMNS).to_pylist():
        try:
            row_id = cells.identifier(record["id"])
            ids.append(row_id)
            if row_id in probabilities:
                raise CellError("id used twice", "the id is used twice")
            probabilities[row_id] = cells.distribution(record, PROBABILITIES, False)
        except CellError as error:
            bad.append(f"id {record['id']}: {error.problem.detail}")
    if bad:
        more = [f"… and {len(bad) - _LISTED:,} more"] if len(bad) > _LISTED else []
        raise UserError(
            "\n  ".join(
                [
                    f"data.soft_labels = {source}: {len(bad):,} of {table.num_rows:,} rows can't be used:",
                    *bad[:_LISTED], *more, "Write the file again, or score the teacher again.",
                ]
            )
        )  # fmt: skip
    folds, labels = (_whole_numbers(table, name, ids) for name in ("fold", "label"))
    directory = Run(file.parent)
    data = directory.data_description() if directory.config.is_file() else {}
    return Teacher(
        source,
        file,
        probabilities,
        labels,
        folds if len(set(folds.values())) > 1 else {},
        data.get("fingerprint"),
        _members(directory, data),
    )


def _whole_numbers(table: pa.Table, name: str, ids: Sequence[str]) -> dict[str, int]:
    """Values of a column by id; nulls and negative values, which stand for unknown, are left out."""
    if name not in table.column_names:
        return {}
    values = zip(ids, table[name].to_pylist(), strict=True)
    return {row_id: int(value) for row_id, value in values if value is not None and value >= 0}


def _read_table(source: str, file: Path) -> pa.Table:
    if not file.is_file():
        raise UserError(
            f"data.soft_labels = {source}: no such file: {file}. Name the directory of a finished run or "
            "cross-validation, or a Parquet file of predictions; score a run with `python eval.py run=RUN`."
        )
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data.soft_labels = {source}: {file} can't be read as Parquet ({error}); write it again"
        ) from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            f"data.soft_labels = {source}: {file} lacks {', '.join(missing)}; it has "
            f"{', '.join(table.column_names)}. Soft labels need the columns {', '.join(COLUMNS)}."
        )
    return table


def _members(directory: Run, data: Mapping[str, Any]) -> tuple[Run, ...]:
    """Runs whose adapters predicted the rows of a directory; empty if any of them is not known or gone."""
    if directory.training_rows.is_file():
        return (directory,)
    runs = tuple(Run(Path(name)) for names in data.get("runs", ()) for name in names)
    return runs if all(run.training_rows.is_file() for run in runs) else ()


def _read_folds(run: Run) -> dict[str, int]:
    """Fold of every row of the student's data set, without extra rows."""
    with run.folds.open(encoding="utf-8", newline="") as file:
        return {line["id"]: int(line["fold"]) for line in csv.DictReader(file)}


def _require_same_data(teacher: Teacher, fold: FoldData) -> None:
    """Raise an error if the teacher scored other rows, as far as ids and labels show it."""
    known = [row for row in fold.train if row.id in teacher.probabilities]
    other = teacher.fingerprint not in (None, fold.description["fingerprint"])
    if not known:
        raise UserError(
            f"data.soft_labels = {teacher.source}: none of the {len(fold.train):,} training rows is in it; "
            f"it has {_listed(list(teacher.probabilities))}, the training rows have "
            f"{_listed([row.id for row in fold.train])}.\n  "
            + ("It was made from other data: score" if other else "Score")
            + " the teacher on this run's data.path and data.extra."
        )
    labelled = [row for row in known if row.label is not None and row.id in teacher.labels]
    different = [row.id for row in labelled if row.label != teacher.labels[row.id]]
    if different:
        raise UserError(
            f"data.soft_labels = {teacher.source}: {len(different):,} of {len(known):,} training rows have "
            f"another label there ({_listed(different)}), so it seems to belong to other data.\n"
            "  Score the teacher on this run's data. If labels were corrected since: give a Parquet file "
            f"with the columns {', '.join(COLUMNS)} only."
        )


def _require_all_rows(
    teacher: Teacher, train: Sequence[Comparison], own_folds: Mapping[str, int]
) -> list[str]:
    """Raise an error for rows without a prediction; returns ids of extra rows that have own soft labels."""
    missing = [row for row in train if row.id not in teacher.probabilities]
    kept = [row.id for row in missing if row.id not in own_folds and row.soft_label is not None]
    refused = [row.id for row in missing if row.id in own_folds or row.soft_label is None]
    if refused:
        raise UserError(
            f"data.soft_labels = {teacher.source}: {len(refused):,} of {len(train):,} training rows are "
            f"missing: {_listed(refused)}.\n"
            "  A training run predicts its validation fold only. Merge all folds of the teacher (`python "
            "eval.py runs=[RUN0,RUN1,…]`), or score the teacher of this fold on all rows (`python eval.py "
            "run=RUN eval.trained_rows=include`), and name the directory that eval.py made."
        )
    return kept


def _require_unseen(
    teacher: Teacher, held_out: Sequence[Comparison], own_folds: Mapping[str, int]
) -> list[str]:
    """Raise an error if the teacher was trained on validation rows of the student; returns warnings.

    Out-of-fold predictions of the same folds are accepted: labels of validation rows were seen by teachers of
    other folds, but reach the student only through what these predict for other rows.
    """
    if teacher.folds:
        moved = [i for i, fold in own_folds.items() if teacher.folds.get(i, fold) != fold]
        if moved:
            raise UserError(
                f"data.soft_labels = {teacher.source}: a cross-validation with other folds, {len(moved):,} "
                f"of {len(own_folds):,} rows are in another one ({_listed(moved)}). Its models were trained "
                "on validation rows of this run, so the score would be too optimistic.\n  Train this run "
                "with the folds of the teacher: data.fold_file=TEACHER_RUN/folds.csv and its data.folds."
            )
        log.info("%s: out-of-fold predictions of a cross-validation with this run's folds", teacher.source)
        return []
    for member in teacher.runs:
        seen = count_trained(member.training_rows, held_out)
        if seen:
            raise UserError(
                f"data.soft_labels = {teacher.source}: {member.path} was trained on {seen:,} of the "
                f"{len(held_out):,} validation rows of this run, so the score would be too optimistic.\n"
                "  Use a teacher of the same fold (same data.fold_seed and data.folds, or data.fold_file), "
                "or merge all of its folds: `python eval.py runs=[RUN0,RUN1,…]`."
            )
    if teacher.runs:
        return []
    return [
        f"{teacher.source} does not say which runs made it: whether they were trained on validation rows of "
        "this run can't be checked, and the score may be too optimistic"
    ]


def _listed(ids: Sequence[str]) -> str:
    more = len(ids) - _LISTED
    return f"ids {', '.join(ids[:_LISTED])}" + (f" and {more:,} more" if more > 0 else "")
