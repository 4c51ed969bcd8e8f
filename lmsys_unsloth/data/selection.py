"""Selection of the rows to score: a validation fold, or a file without the rows that were trained on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import group_by_prompt, limit_rows, load_fold, load_rows
from lmsys_unsloth.data.stored_rows import select
from lmsys_unsloth.data.trained_rows import TrainedRows, load_trained_rows

log = logging.getLogger(__name__)

FEW_PROMPTS = 30
"""With fewer prompts, a mean loss is too uncertain to compare steps or models by; its bootstrap interval is
unreliable, and on average too narrow."""

NO_FOLD = -1
"""Fold of a row that belongs to no fold: the rows of a file that is scored whole."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Number of rows in a file that the scored runs were trained on."""

    left_out: int
    """Labelled rows that are not scored because they were trained on."""
    scored: int | None
    """Labelled rows that were trained on and are scored nevertheless: their loss says nothing about new
    rows. None when it is not known which rows were trained on."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows to score, not yet encoded."""

    rows: Sequence[Comparison]
    folds: NDArray[np.int64]
    """``[rows]``; :data:`NO_FOLD` for rows that belong to no fold."""
    groups: NDArray[np.int64] | None
    """``[rows]``: rows with equal numbers share a fold. None when a file is scored whole."""
    train: Sequence[Comparison] = ()
    """Training rows of the same data set, for baselines; empty when a file is scored whole."""
    overlap: Overlap | None = None
    """None for an untrained model."""


def select_for_untrained(config: Config, output: Run) -> Selection:
    """Select the validation fold, or the whole file if it has no labels, for an untrained model."""
    rows = load_rows(config.data, output)
    if all(row.label is None for row in rows):
        return _whole_file(rows)
    return _validation_fold(config, output)


def select_for_trained(
    config: Config, runs: Sequence[Run], rows: Sequence[Comparison], output: Run
) -> Selection:
    """Select rows that none of the trained runs was trained on.

    Of the data set that a single run was split from, regardless of the file's name, these are the rows of
    its validation fold. Of any other file they are the rows whose content is not among the training rows.
    Unlabelled rows are always kept, because they do not enter a score.
    ``eval.trained_rows=include`` keeps all rows.

    Args:
        config: configuration of the scoring.
        runs: trained runs; several are going to be averaged.
        rows: all rows of the file, from :func:`~lmsys_unsloth.data.dataset.load_rows`.
        output: where the description of the data is written.

    Raises:
        UserError: no row is left, or a run does not say which rows it was trained on.
    """
    include = config.eval.trained_rows == "include"
    trained = _load_trained_rows(runs, optional=include)
    source, names = config.data.path or config.data.name, ", ".join(str(run.path) for run in runs)
    fingerprint = rows_fingerprint(rows)
    if include or len(runs) > 1 or not is_split_from(runs[0], fingerprint):
        selection = _whole_file(rows)
        description = {"path": source, "rows": len(rows)}
        scored_by = [[str(run.path) for run in runs]]
        write_json(output.data, {"fingerprint": fingerprint, "source": description, "runs": scored_by})
    else:
        folds = {"fold_file": str(runs[0].folds)}
        selection = _validation_fold(
            config.model_copy(update={"data": config.data.model_copy(update=folds)}), output
        )
        include = config.debug.evaluate_on_train
    if include:
        scored = None if trained is None else sum(_used(trained, selection.rows))
        log.warning(
            "%s of the %d scored rows were used to train %s",
            "an unknown number" if scored is None else scored, len(selection.rows), names,
        )  # fmt: skip
        return dataclasses.replace(selection, overlap=Overlap(left_out=0, scored=scored))
    assert trained is not None
    used = {row.id for row, is_used in zip(rows, _used(trained, rows), strict=True) if is_used}
    selection = _take(selection, [row.id not in used for row in selection.rows])
    if not selection.rows:
        raise UserError(
            f"{source}: nothing to score, {len(used):,} of {len(rows):,} rows were used to train {names}.\n"
            "  Name a file with other rows, or score them anyway with eval.trained_rows=include."
        )
    log.info(
        "%s: %d of %d rows were used to train %s and are left out; %d rows are scored",
        source, len(used), len(rows), names, len(selection.rows),
    )  # fmt: skip
    return dataclasses.replace(selection, overlap=Overlap(left_out=len(used), scored=0))


def is_split_from(run: Run, fingerprint: str) -> bool:
    """Whether the run saved folds of the rows with this fingerprint, whatever their file was called."""
    return bool(run.data_description().get("fingerprint") == fingerprint)


def split_early_stopping(
    rows: Sequence[Comparison], config: Config
) -> tuple[Sequence[Comparison], Sequence[Comparison]]:
    """Split training rows into those to train on and the early-stopping set, by whole groups of prompts.

    The set is empty without ``train.evaluate_every``. Groups are added in random order as long as the set
    does not exceed ``train.early_stopping_share`` and ``train.early_stopping_rows``; the first one is always
    taken, and those with unlabelled rows never.

    Raises:
        UserError: all rows share one prompt.
    """
    train = config.train
    if train.evaluate_every is None:
        return rows, []
    groups = group_by_prompt(rows, config.data, rows_fingerprint(rows))
    unlabelled = [row.label is None for row in rows]
    groups = np.where(np.isin(groups, groups[unlabelled]), -1, groups)
    numbers, sizes = np.unique(groups[groups >= 0], return_counts=True)
    if len(numbers) < 2:
        raise UserError(
            f"train.evaluate_every = {train.evaluate_every}: all labelled training rows share one prompt, so "
            "no early-stopping set can be split off.\n  Give rows with several prompts, or leave it out."
        )
    most = min(train.early_stopping_rows, round(train.early_stopping_share * len(rows)))
    order = np.random.default_rng(config.seed).permutation(len(numbers))
    chosen, count = [order[0]], int(sizes[order[0]])
    for index in order[1:]:
        if count + sizes[index] <= most:
            chosen.append(index)
            count += int(sizes[index])
    inside = np.isin(groups, numbers[chosen])
    if len(chosen) < FEW_PROMPTS:
        log.warning(
            "the early-stopping set has only %d prompts (%d rows); with fewer than %d, the step that looks "
            "best may be so by chance: raise train.early_stopping_share or give more rows",
            len(chosen), count, FEW_PROMPTS,
        )  # fmt: skip
    return select(rows, ~inside), select(rows, inside)


def _load_trained_rows(runs: Sequence[Run], optional: bool) -> TrainedRows | None:
    try:
        return load_trained_rows(run.training_rows for run in runs)
    except UserError as error:
        if not optional:
            raise
        log.warning("%s", str(error).splitlines()[0])
        return None


def _used(trained: TrainedRows, rows: Sequence[Comparison]) -> list[bool]:
    """For each row, whether it is labelled and was trained on."""
    return [row.label is not None and row in trained for row in rows]


def _validation_fold(config: Config, output: Run) -> Selection:
    fold = limit_rows(load_fold(config.data, config.fold, output), config.debug, config.seed)
    return Selection(fold.validation, np.full(len(fold.validation), config.fold), fold.groups, fold.train)


def _whole_file(rows: Sequence[Comparison]) -> Selection:
    return Selection(rows, np.full(len(rows), NO_FOLD), None)


def _take(selection: Selection, chosen: Sequence[bool]) -> Selection:
    mask = np.array(chosen, dtype=np.bool_)
    return dataclasses.replace(
        selection,
        rows=select(selection.rows, mask),
        folds=selection.folds[mask],
        groups=None if selection.groups is None else selection.groups[mask],
    )
