"""Which rows a command scores: the validation fold, or a whole file without the rows that were trained on."""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import FoldData, limited, load_fold, load_rows
from lmsys_unsloth.data.trained_rows import TrainedRows, load_trained_rows

log = logging.getLogger(__name__)

NO_FOLD = -1
"""Fold of a row that belongs to no fold: the rows of a file that is scored whole."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many rows of a file the scored runs were trained on."""

    left_out: int
    """Labelled rows that are not scored because they were trained on."""
    scored: int
    """Rows that were trained on and are scored all the same; their loss says nothing about new rows."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows to score, not yet encoded."""

    rows: Sequence[Comparison]
    folds: NDArray[np.int64]
    """``[rows]``; :data:`NO_FOLD` for rows that belong to no fold."""
    groups: NDArray[np.int64] | None
    """``[rows]``: rows that share a prompt share a number. None when a file is scored whole."""
    train: Sequence[Comparison] = ()
    """Training rows of the same data set, from which baselines learn; empty when a file is scored whole."""
    overlap: Overlap | None = None
    """None for an untrained model."""

    def take(self, mask: NDArray[np.bool_]) -> Selection:
        """The rows that a mask ``[rows]`` selects."""
        rows = [row for row, chosen in zip(self.rows, mask, strict=True) if chosen]
        groups = None if self.groups is None else self.groups[mask]
        return dataclasses.replace(self, rows=rows, folds=self.folds[mask], groups=groups)


def select_for_untrained(config: Config, output: Run) -> Selection:
    """Rows on which an untrained model is scored: the validation fold, or a whole file without labels."""
    rows = load_rows(config.data, output)
    if all(row.label is None for row in rows):
        return _whole_file(rows)
    return _validation_fold(load_fold(config.data, config.fold, output), config)


def select_for_trained(
    config: Config, runs: Sequence[Run], rows: Sequence[Comparison], output: Run
) -> Selection:
    """Rows on which trained runs may be scored: none that any of them was trained on.

    Of the data set that a single run was split from, whatever its file is called, these are the rows of
    its validation fold. Of any other file they are the rows whose content is not among the training rows.
    Unlabelled rows are always kept: they can't enter a score. ``eval.trained_rows=include`` keeps all.

    Args:
        config: configuration of the scoring.
        runs: trained runs; several are going to be averaged.
        rows: all rows of the file, from :func:`~lmsys_unsloth.data.dataset.load_rows`.
        output: where the description of the data is written.

    Raises:
        UserError: no row is left, or a run does not say which rows it was trained on.
    """
    trained = functools.reduce(operator.or_, (load_trained_rows(run.training_rows) for run in runs))
    include = config.eval.trained_rows == "include"
    source = config.data.path or config.data.name
    if include or len(runs) > 1 or not is_split_from(runs[0], rows):
        selection = _whole_file(rows)
        write_json(
            output.data,
            {"fingerprint": rows_fingerprint(rows), "source": {"path": source, "rows": len(rows)}},
        )
    else:
        saved_folds = config.data.model_copy(update={"fold_file": str(runs[0].folds)})
        selection = _validation_fold(load_fold(saved_folds, config.fold, output), config)
        include = config.debug.evaluate_on_train
    names = ", ".join(str(run.path) for run in runs)
    if include:
        scored = int(_mask(trained, selection.rows).sum())
        log.warning("%d of the %d scored rows were used to train %s", scored, len(selection.rows), names)
        return dataclasses.replace(selection, overlap=Overlap(left_out=0, scored=scored))
    left_out = int((_mask(trained, rows) & _labelled(rows)).sum())
    selection = selection.take(~(_mask(trained, selection.rows) & _labelled(selection.rows)))
    if not selection.rows:
        raise UserError(
            f"{source}: nothing to score, {left_out:,} of {len(rows):,} rows were used to train {names}.\n"
            "  Name a file with other rows, or score them all the same with eval.trained_rows=include."
        )
    log.info(
        "%s: %d of %d rows were used to train %s and are left out; %d rows are scored",
        source, left_out, len(rows), names, len(selection.rows),
    )  # fmt: skip
    scored = int(_mask(trained, selection.rows).sum())
    return dataclasses.replace(selection, overlap=Overlap(left_out, scored))


def is_split_from(run: Run, rows: Sequence[Comparison]) -> bool:
    """Whether ``rows`` are the data set whose folds the run saved, by content and not by file name."""
    known = run.data_description().get("fingerprint")
    return known is not None and known == rows_fingerprint(rows)


def _validation_fold(fold: FoldData, config: Config) -> Selection:
    fold = limited(fold, config.debug, config.seed)
    folds = np.full(len(fold.validation), config.fold)
    return Selection(fold.validation, folds, fold.groups, fold.train)


def _whole_file(rows: Sequence[Comparison]) -> Selection:
    return Selection(rows, np.full(len(rows), NO_FOLD), None)


def _mask(trained: TrainedRows, rows: Sequence[Comparison]) -> NDArray[np.bool_]:
    return np.array([row in trained for row in rows], dtype=np.bool_)


def _labelled(rows: Sequence[Comparison]) -> NDArray[np.bool_]:
    return np.array([row.label is not None for row in rows], dtype=np.bool_)
