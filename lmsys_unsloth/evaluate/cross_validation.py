"""Merge several runs: folds into a cross-validation, runs over the same rows into an average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.arrays import Ints
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate import averaging
from lmsys_unsloth.evaluate.bootstrap import cluster_numbers, paired_bootstrap, random_parts
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import Predictions, concatenate, format_ids, repeated_ids
from lmsys_unsloth.evaluate.scores import ModelScore


@dataclass(frozen=True)
class Merged:
    """Predictions made from several runs."""

    predictions: Predictions
    members: list[list[str]]
    """Run names; each inner list holds runs over the same rows, which were averaged."""
    weights: list[float] | None
    """Weight of the 1st, 2nd, … run of every inner list; None where nothing was averaged."""
    train_prior: tuple[float, float, float] | None
    """Class shares of the training rows, weighted by the rows that each run scored; None if unknown."""
    models: list[Predictions]
    """What was averaged: the 1st, 2nd, … runs of all inner lists, each over all rows."""

    @property
    def description(self) -> str:
        """What was merged, for example ``5 folds merged, 2 runs averaged in each``."""
        folds, runs = len(self.members), max(len(names) for names in self.members)
        merged = [f"{folds} folds merged"] if folds > 1 else []
        averaged = [f"{runs} runs averaged" + (" in each" if folds > 1 else "")] if runs > 1 else []
        return ", ".join(merged + averaged) or "one run"


@dataclass(frozen=True)
class _Member:
    path: Path
    predictions: Predictions
    data: dict[str, Any]


def merge_runs(runs: Sequence[Run], predicted: Sequence[Predictions], *, fit_weights: bool = False) -> Merged:
    """Merge the predictions of several runs.

    Runs that scored the same rows are averaged; runs over different rows must be the folds of one
    division, all of them. With ``fit_weights``, averaged runs are weighted so that the log loss is lowest,
    instead of equally: the weights of each row are fitted on other rows (the other folds, or other prompts
    within a single fold), and the n-th runs of all folds count as the same model.

    Raises:
        UserError: rows missing or scored twice, runs on different data or with different folds, different
            labels for a row, or weights requested where they can't be fitted.
    """
    members = [_Member(run.path, p, run.data_description()) for run, p in zip(runs, predicted, strict=True)]
    if not members:
        raise UserError("runs=[]: nothing to merge; name at least one run directory.")
    for member in members:
        repeated = repeated_ids(member.predictions.ids)
        if repeated:
            raise UserError(f"{member.path}: {format_ids(repeated)} predicted more than once in this run.")
    sets = _group_by_rows(members)
    _require_equal(
        [(member.path, member.data.get("fingerprint")) for member in members],
        "were made from different data",
        "Merge only runs with the same data.path (and data.seed, data.rows when simulated).",
    )
    if len(sets) > 1:
        _require_equal(
            [(member.path, (member.data.get("folds") or {}).get("fingerprint")) for member in members],
            "divide the rows into folds differently",
            "A row held out by one would be in another's training rows. Train all folds with the same "
            "data.folds, data.fold_seed, data.near_duplicate and data.group_by, or with "
            "data.fold_file=RUN/folds.csv.",
        )
        _require_all_rows(runs[0], [id for same in sets for id in same[0].predictions.ids])
    models = _models(sets)
    if fit_weights:
        merged, fitted = averaging.average_with_fitted_weights(models, _parts(sets, models))
        weights: list[float] | None = fitted.tolist()
    else:
        merged = concatenate([averaging.average([m.predictions for m in same]) for same in sets])
        weights = [1 / len(models)] * len(models) if models else None
    names = [[str(member.path) for member in same] for same in sets]
    return Merged(merged, names, weights, _train_prior(members), models)


def compare_models(merged: Merged, seed: int = 0) -> tuple[ModelScore, ...]:
    """Score each averaged model and compare it with the first; empty for a single model or without labels."""
    if not merged.models or not merged.predictions.labelled.any():
        return ()
    known = merged.predictions.labelled
    first = merged.models[0].take(known)
    cluster = cluster_numbers(first.groups, len(first))
    losses = [log_losses(p[known], first.labels) for p in averaging.stack_probabilities(merged.models)]
    scores = []
    for k, own in enumerate(losses):
        pair = paired_bootstrap(own, losses[0], cluster, seed=seed) if k else None
        runs = tuple(names[k] for names in merged.members)
        difference, interval = (pair.difference, pair.difference_ci) if pair else (None, None)
        scores.append(ModelScore(runs, float(own.mean()), difference, interval))
    return tuple(scores)


def _group_by_rows(members: Sequence[_Member]) -> list[list[_Member]]:
    """Group runs over the same rows; an error when two runs share only some rows."""
    sets: dict[frozenset[str], list[_Member]] = {}
    for member in members:
        sets.setdefault(frozenset(member.predictions.ids), []).append(member)
    scored_by: dict[str, Path] = {}
    for same in sets.values():
        first = same[0]
        double = [id for id in first.predictions.ids if id in scored_by]
        if double:
            raise UserError(
                f"{first.path} and {scored_by[double[0]]} both predict {format_ids(double)} "
                f"({len(double)} rows double), but not the same rows altogether.\n"
                "  Give runs over the same rows (to average them) or over different folds (to merge them)."
            )
        scored_by.update(dict.fromkeys(first.predictions.ids, first.path))
    return list(sets.values())


def _require_equal(values: Sequence[tuple[Path, Any]], problem: str, remedy: str) -> None:
    """Raise an error when two known values differ."""
    known = [(path, value) for path, value in values if value is not None]
    for path, value in known:
        if value != known[0][1]:
            raise UserError(
                f"{known[0][0]} and {path} {problem}: {known[0][1]!s:.12} and {value!s:.12}.\n  {remedy}"
            )


def _require_all_rows(run: Run, scored: Sequence[str]) -> None:
    """Raise an error when a row of ``folds.csv`` was not scored."""
    if not run.folds.is_file():
        raise UserError(
            f"{run.path}: has no {run.folds.name}, so it can't be told whether these runs hold all rows.\n"
            "  Merge the run directories that train.py made."
        )
    folds = pd.read_csv(run.folds, dtype={"id": str}, keep_default_na=False)
    missing = folds[~folds["id"].isin(scored)]
    if len(missing):
        ids, numbers = missing["id"].tolist(), sorted(set(missing["fold"].tolist()))
        raise UserError(
            f"{len(missing)} of {len(folds)} rows are missing from these runs: {format_ids(ids)}, of fold "
            f"{', '.join(map(str, numbers))}.\n"
            "  Cross-validation needs every fold, scored completely (no debug.validation_rows): train and "
            "name the missing ones, or give runs over the same fold to average them."
        )


def _models(sets: Sequence[Sequence[_Member]]) -> list[Predictions]:
    """Concatenate the n-th runs of all sets; empty when the sets differ in size or hold one run each."""
    sizes = {len(same) for same in sets}
    if len(sizes) > 1 or sizes == {1}:
        return []
    return [concatenate([same[k].predictions for same in sets]) for k in range(len(sets[0]))]


def _parts(sets: Sequence[Sequence[_Member]], models: Sequence[Predictions]) -> Ints:
    """Parts ``[n]`` for fitting weights out of fold: the folds, or within one fold, groups of prompts."""
    if not models:
        raise UserError(
            f"weights can be fitted when every fold has the same number of runs, two or more; here: "
            f"{', '.join(str(len(same)) for same in sets)}. Name the runs model by model for each fold."
        )
    if not models[0].labelled.all():
        raise UserError(
            "weights are fitted on labelled rows, but some rows have no label; average equally instead."
        )
    if len(sets) > 1:
        return np.repeat(np.arange(len(sets)), [len(same[0].predictions) for same in sets])
    part = random_parts(cluster_numbers(models[0].groups, len(models[0])))
    if len(np.unique(part)) < 2:
        raise UserError(
            "weights can't be fitted out of fold: all rows have one prompt; average equally instead."
        )
    return part


def _train_prior(members: Sequence[_Member]) -> tuple[float, float, float] | None:
    total = np.zeros(3)
    for member in members:
        labels = (member.data.get("train") or {}).get("labels") or {}
        counts = np.array([labels.get(name, 0) for name in LABELS], dtype=np.float64)
        if not counts.all():
            return None
        total += counts / counts.sum() * len(member.predictions)
    a, b, tie = (total / total.sum()).tolist()
    return a, b, tie
