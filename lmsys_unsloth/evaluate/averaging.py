"""Several models' predictions for the same rows as one: equal shares, or shares fitted on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate.bootstrap import cluster_numbers
from lmsys_unsloth.evaluate.calibration import EPSILON, Floats, Ints
from lmsys_unsloth.evaluate.predictions import Predictions, listed

WEIGHT_PARTS = 5
_PER_MODEL = {f"p_{view}_{name}" for view in ("forward", "swap") for name in LABELS}
"""Columns that speak of one model and mean nothing beside an average of several."""


def average(runs: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Weighted mean of predictions for the same rows, in the first run's order.

    >>> p = Predictions(["1"], np.zeros(1, int), np.array([[1, 0, 0]], np.float32), np.array([0]))
    >>> q = Predictions(["1"], np.zeros(1, int), np.array([[0, 1, 0]], np.float32), np.array([0]))
    >>> average([p, q], [3, 1]).probabilities.tolist()
    [[0.75, 0.25, 0.0]]
    """
    stack = stacked(runs)
    shares = np.ones(len(runs)) if weights is None else np.asarray(weights, dtype=np.float64)
    return replaced(runs[0], np.tensordot(shares / shares.sum(), stack, axes=1), several=len(runs) > 1)


def best_weights(stack: Floats, labels: NDArray[Any], steps: int = 500) -> Floats:
    """Shares [m] of m models that give their mixture the least log loss.

    The loss is convex in the shares; each step (expectation-maximisation for mixture shares)
    lowers it, and never leaves the simplex.

    Args:
        stack: [m, n, 3] probabilities.
        labels: [n].
    """
    chosen = np.clip(stack[:, np.arange(len(labels)), labels], EPSILON, 1.0)  # [m, n]
    shares = np.full(len(stack), 1 / len(stack))
    for _ in range(steps):
        credit = shares[:, None] * chosen
        updated = (credit / credit.sum(axis=0)).mean(axis=1)
        if np.abs(updated - shares).max() < 1e-7:
            break
        shares = updated
    return np.asarray(shares, dtype=np.float64)


def cross_fitted(stack: Floats, labels: Ints, part: Ints) -> tuple[Floats, Floats]:
    """Mixture [n, 3], each part's weights fitted on the other parts; and weights [m] fitted on all rows."""
    mixed = np.empty(stack.shape[1:])
    for held_out in np.unique(part):
        inside = part == held_out
        weights = best_weights(stack[:, ~inside], labels[~inside])
        mixed[inside] = np.tensordot(weights, stack[:, inside], axes=1)
    return mixed, best_weights(stack, labels)


def weight_parts(runs: Sequence[Sequence[Predictions]]) -> Ints:
    """Part of each row for fitting out of fold: the folds where there are several, else groups of prompts."""
    if len(runs) > 1:
        return np.repeat(np.arange(len(runs)), [len(same[0]) for same in runs])
    cluster = cluster_numbers(runs[0][0].groups, len(runs[0][0]))
    shuffled = np.random.default_rng(0).permutation(int(cluster.max()) + 1)
    part = np.asarray(shuffled[cluster] % WEIGHT_PARTS, dtype=np.int64)
    if len(np.unique(part)) < 2:
        raise UserError(
            "weights can't be fitted out of fold: all rows have one prompt; average equally instead."
        )
    return part


def stacked(runs: Sequence[Predictions]) -> Floats:
    """Probabilities [m, n, 3] of runs over the same rows, all in the first run's order."""
    order = {id: k for k, id in enumerate(runs[0].ids)}
    stack = np.empty((len(runs), len(order), 3))
    for k, run in enumerate(runs):
        position = np.array([order[id] for id in run.ids], dtype=np.int64)
        stack[k, position] = run.probabilities
        differing = [
            id
            for id, label, at in zip(run.ids, run.labels, position, strict=True)
            if label != runs[0].labels[at]
        ]
        if differing:
            raise UserError(
                f"the runs disagree on the label of {listed(differing)}; score them on the same file."
            )
    return stack


def replaced(first: Predictions, p: Floats, *, several: bool) -> Predictions:
    """``first`` with other probabilities [n, 3], without the columns that speak of one model alone."""
    extra = {name: values for name, values in first.extra.items() if not (several and name in _PER_MODEL)}
    return Predictions(first.ids, first.folds, p.astype(np.float32), first.labels, extra)
