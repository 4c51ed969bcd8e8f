"""Several runs as one: folds merged into a cross-validation, runs over the same rows averaged."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate import averaging, metrics
from lmsys_unsloth.evaluate.predictions import UNLABELLED, Predictions, listed, repeated


@dataclass(frozen=True)
class Merged:
    """Predictions made from several runs, and how."""

    predictions: Predictions
    members: list[list[str]]
    """Run names; the inner lists hold runs over the same rows, which were averaged."""
    weights: list[float] | None
    """Share of the 1st, 2nd, … run of every inner list; None where nothing was averaged."""
    train_prior: tuple[float, float, float] | None
    """Class shares of the training rows, weighted by the rows each run scored; None if unknown."""
    models: list[Predictions]
    """What was averaged: predictions of the 1st, 2nd, … run of every inner list, over all rows."""

    @property
    def description(self) -> str:
        """What was done, in words: ``5 folds merged, 2 runs averaged in each``."""
        sets, runs = len(self.members), max(len(names) for names in self.members)
        merged = [f"{sets} folds merged"] if sets > 1 else []
        averaged = [f"{runs} runs averaged" + (" in each" if sets > 1 else "")] if runs > 1 else []
        return ", ".join(merged + averaged) or "one run"


@dataclass(frozen=True)
class _Member:
    run: Run
    predictions: Predictions
    data: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.run.path


def merge_runs(runs: Sequence[Run], predicted: Sequence[Predictions], *, fit_weights: bool = False) -> Merged:
    """Merge the predictions of several runs.

    Runs that scored the same rows are averaged; runs over different rows must be the folds of one
    division, all of them.

    Args:
        runs: run directories.
        predicted: predictions of each run.
        fit_weights: weigh averaged runs so that the log loss is least, instead of equally. Each
            row's weights are fitted on other rows (the other folds, else other prompts), so the score
            stays honest. The n-th run of each fold counts as the same model.

    Raises:
        UserError: rows missing or double, runs on different data or with different folds, unequal
            labels, or weights asked for where they can't be fitted.
    """
    members = [_Member(run, part, run.data_description()) for run, part in zip(runs, predicted, strict=True)]
    if not members:
        raise UserError("runs=[]: nothing to merge; name at least one run directory.")
    for member in members:
        double = repeated(member.predictions.ids)
        if double:
            raise UserError(f"{member.path}: {listed(double)} predicted more than once in this run.")
    sets = _by_rows(members)
    _require_same_data(members)
    if len(sets) > 1:
        _require_same_folds(members)
        _require_every_row_once(sets)
    averaged, weights = _average_sets(sets, fit_weights)
    return Merged(
        _joined(averaged),
        [[str(member.path) for member in one] for one in sets],
        weights,
        _train_prior(members),
        _models(sets),
    )


def compared(merged: Merged, seed: int = 0) -> list[dict[str, Any]]:
    """Log loss of each averaged model, and its paired difference from the first; empty for a single model.

    ``difference`` below zero: better than the first. ``difference_ci`` is its 95% interval.
    """
    if len(merged.models) < 2 or not merged.models[0].labelled.any():
        return []
    found: list[dict[str, Any]] = []
    for k, model in enumerate(merged.models):
        pair = metrics.compare(model, merged.models[0], seed)
        found.append(
            {
                "runs": [names[k] for names in merged.members],
                "log_loss": pair["log_loss"][0],
                "difference": pair["difference"] if k else None,
                "difference_ci": pair["difference_ci"] if k else None,
            }
        )
    return found


def _by_rows(members: Sequence[_Member]) -> list[list[_Member]]:
    """Runs over the same rows together; an error when two runs share only some rows."""
    sets: dict[frozenset[str], list[_Member]] = {}
    for member in members:
        sets.setdefault(frozenset(member.predictions.ids), []).append(member)
    seen: dict[str, Path] = {}
    for ids, same in sets.items():
        double = [id for id in same[0].predictions.ids if id in seen]
        if double:
            raise UserError(
                f"{same[0].path} and {seen[double[0]]} both predict {listed(double)} "
                f"({len(double)} rows double), but not the same rows altogether.\n"
                "  Give runs over the same rows (to average them) or over different folds (to merge them)."
            )
        seen.update(dict.fromkeys(ids, same[0].path))
    return list(sets.values())


def _require_same_data(members: Sequence[_Member]) -> None:
    _require_equal(
        members,
        {str(m.path): m.data.get("fingerprint") for m in members},
        "were made from different data",
        "Merge only runs with the same data.path (and data.seed, data.rows when simulated).",
    )


def _require_same_folds(members: Sequence[_Member]) -> None:
    _require_equal(
        members,
        {str(m.path): _folds(m).get("fingerprint") for m in members},
        "divide the rows into folds differently",
        "A row held out by one would be in another's training rows. Train all folds with the same "
        "data.folds, data.fold_seed and data.near_duplicate, or with data.fold_file=RUN/folds.csv.",
    )


def _require_equal(members: Sequence[_Member], values: dict[str, Any], what: str, remedy: str) -> None:
    known = {path: value for path, value in values.items() if value is not None}
    first = next(iter(known), None)
    other = next((path for path, value in known.items() if value != known[str(first)]), None)
    if other is not None:
        raise UserError(
            f"{first} and {other} {what}: {known[str(first)]!s:.12} and {known[other]!s:.12}.\n  {remedy}"
        )


def _require_every_row_once(sets: Sequence[Sequence[_Member]]) -> None:
    """Double rows were found by :func:`_by_rows`; here the missing ones."""
    present = {id for same in sets for id in same[0].predictions.ids}
    fold_of = _all_rows(sets[0][0].run)
    missing = [id for id in fold_of if id not in present]
    if not missing:
        return
    absent = sorted({fold_of[id] for id in missing})
    raise UserError(
        f"{len(missing)} of {len(fold_of)} rows are missing from these runs: {listed(missing)}, "
        f"of fold {', '.join(map(str, absent))}.\n"
        "  Cross-validation needs every fold, scored completely (no debug.validation_rows): train and name "
        "the missing ones, or give runs over the same fold to average them."
    )


def _all_rows(run: Run) -> dict[str, int]:
    """Fold of every row as saved in ``folds.csv``."""
    if not run.folds.is_file():
        raise UserError(
            f"{run.path}: has no {run.folds.name}, so it can't be told whether these runs hold all rows.\n"
            "  Merge the run directories that train.py made."
        )
    with run.folds.open(encoding="utf-8", newline="") as file:
        return {line["id"]: int(line["fold"]) for line in csv.DictReader(file)}


def _folds(member: _Member) -> dict[str, Any]:
    described = member.data.get("folds")
    return described if isinstance(described, dict) else {}


def _models(sets: Sequence[Sequence[_Member]]) -> list[Predictions]:
    """The n-th runs of all sets put together; none when the sets differ in size or hold one run each."""
    counts = {len(same) for same in sets}
    if len(counts) > 1 or counts == {1}:
        return []
    return [_joined([same[k].predictions for same in sets]) for k in range(counts.pop())]


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


def _average_sets(
    sets: Sequence[Sequence[_Member]], fit_weights: bool
) -> tuple[list[Predictions], list[float] | None]:
    runs = [[member.predictions for member in same] for same in sets]
    counts = {len(same) for same in runs}
    if not fit_weights:
        equal = [1 / n for n in counts for _ in range(n)] if counts != {1} and len(counts) == 1 else None
        return [averaging.average(same) for same in runs], equal
    if len(counts) > 1 or counts == {1}:
        raise UserError(
            f"weights can be fitted when every fold has the same number of runs, two or more; here: "
            f"{', '.join(str(len(same)) for same in runs)}. Name the runs model by model for each fold."
        )
    stack = np.concatenate([averaging.stacked(same) for same in runs], axis=1)  # [models, all rows, 3]
    labels = np.concatenate([same[0].labels for same in runs])
    if (labels == UNLABELLED).any():
        raise UserError(
            "weights are fitted on labelled rows, but some rows have no label; average equally instead."
        )
    mixed, weights = averaging.cross_fitted(stack, labels, averaging.weight_parts(runs))
    bounds = np.cumsum([len(same[0]) for same in runs])[:-1]
    parts = np.split(mixed, bounds)
    return [
        averaging.replaced(same[0], p, several=True) for same, p in zip(runs, parts, strict=True)
    ], weights.tolist()


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """Folds one after the other; a column that one part lacks is null there."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.extra)
    return Predictions(
        [id for part in parts for id in part.ids],
        np.concatenate([part.folds for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {
            name: [value for part in parts for value in part.extra.get(name, [None] * len(part))]
            for name in names
        },
    )
