"""Average the predictions of several models for the same rows, equally or with fitted weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.arrays import Floats, Ints
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.calibration import EPSILON
from lmsys_unsloth.evaluate.predictions import SWAP_COLUMNS, Predictions, format_ids, one_order


def average(models: Sequence[Predictions]) -> Predictions:
    """Average predictions for the same rows, in the order of the first model.

    >>> p = Predictions(["1"], np.zeros(1, int), np.array([[1, 0, 0]], np.float32), np.array([0]))
    >>> q = Predictions(["1"], np.zeros(1, int), np.array([[0, 1, 0]], np.float32), np.array([0]))
    >>> average([p, q]).probabilities.tolist()
    [[0.5, 0.5, 0.0]]
    """
    if len(models) == 1:
        return models[0]
    return _with_probabilities(models, stack_probabilities(models).mean(axis=0))


def average_with_fitted_weights(models: Sequence[Predictions], part: Ints) -> tuple[Predictions, Floats]:
    """Average labelled predictions of the same rows with the weights that give the lowest log loss.

    The weights used for each ``part`` ``[n]`` are fitted on all other parts, so that the log loss of the
    average is out of fold. Also returned are weights ``[models]`` fitted on all rows.
    """
    stack, labels = stack_probabilities(models), models[0].labels
    mean = np.empty(stack.shape[1:])
    for held_out in np.unique(part):
        inside = part == held_out
        mean[inside] = np.tensordot(
            best_weights(stack[:, ~inside], labels[~inside]), stack[:, inside], axes=1
        )
    return _with_probabilities(models, mean), best_weights(stack, labels)


def best_weights(stack: Floats, labels: NDArray[Any], steps: int = 500) -> Floats:
    """Weights ``[models]``, summing to 1, whose average has the lowest log loss.

    The loss is convex in the weights, and every step of expectation-maximisation (EM for the proportions of
    a mixture) lowers it. ``stack`` is ``[models, n, 3]``.
    """
    chosen = np.clip(stack[:, np.arange(len(labels)), labels], EPSILON, 1.0)  # [models, n]
    weights = np.full(len(stack), 1 / len(stack))
    for _ in range(steps):
        weighted = weights[:, None] * chosen
        updated = (weighted / weighted.sum(axis=0)).mean(axis=1)
        if np.abs(updated - weights).max() < 1e-7:
            break
        weights = updated
    return np.asarray(weights, dtype=np.float64)


def stack_probabilities(models: Sequence[Predictions]) -> Floats:
    """Probabilities ``[models, n, 3]`` of rows with equal labels, all in the order of the first model."""
    stack = np.empty((len(models), len(models[0]), 3))
    position = {id: k for k, id in enumerate(models[0].ids)}
    for model, probabilities in zip(models, stack, strict=True):
        order = np.array([position[id] for id in model.ids], dtype=np.int64)
        probabilities[order] = model.probabilities
        differing = np.flatnonzero(model.labels != models[0].labels[order])
        if len(differing):
            ids = [model.ids[k] for k in differing.tolist()]
            raise UserError(
                f"the runs disagree on the label of {format_ids(ids)}; score them on the same file."
            )
    return stack


def _with_probabilities(models: Sequence[Predictions], probabilities: Floats) -> Predictions:
    """The first model with the probabilities of an average, without the columns that describe one model."""
    first = models[0]
    extra = {name: values for name, values in first.extra.items() if name not in SWAP_COLUMNS}
    extra["both_orders"] = np.full(len(first), not any(one_order(model).any() for model in models))
    return dataclasses.replace(first, probabilities=probabilities.astype(np.float32), extra=extra)
