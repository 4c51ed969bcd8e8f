"""Log loss of each row, smooth calibration error and temperature scaling.

Probabilities are float64 of shape ``[n, 3]`` in ``comparison.LABELS`` order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from lmsys_unsloth.core.arrays import Floats, Ints

EPSILON = float(np.finfo(np.float64).eps)
"""Smallest probability whose logarithm is taken, as in scikit-learn: the largest log loss is 36.04."""

GRID_CELLS = 2000
"""Resolution of the probability axis in :func:`smooth_calibration_error`."""

TEMPERATURE_RANGE = (0.05, 20.0)
"""Smallest and largest temperature that :func:`fit_temperature` considers."""


def log_losses(probabilities: Floats, labels: NDArray[Any]) -> Floats:
    """Negative natural logarithm of the probability of each row's label, shape ``[n]``.

    >>> log_losses(np.array([[0.5, 0.25, 0.25]]), np.array([0])).round(4).tolist()
    [0.6931]
    """
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(chosen, EPSILON, 1.0)), dtype=np.float64)


def smooth_calibration_error(predicted: Floats, outcome: Floats) -> float:
    """Smooth calibration error of a binary prediction (Błasiok and Nakkiran 2023, arXiv:2309.12236).

    Residuals ``outcome - predicted`` are smoothed along the probability axis with a reflected Gaussian, and
    their absolute values are summed. The bandwidth is the one that equals the resulting error, so no number
    of bins has to be chosen. ``predicted`` and ``outcome`` have shape ``[n]``, with at least one row; 0 is
    perfect, and a constant prediction scores its distance from the observed rate:

    >>> round(smooth_calibration_error(np.full(10, 0.7), np.array([1.0] * 5 + [0.0] * 5)), 3)
    0.2
    """
    cell = np.minimum((predicted * GRID_CELLS).astype(np.int64), GRID_CELLS - 1)
    residuals = np.bincount(cell, weights=outcome - predicted, minlength=GRID_CELLS) / len(predicted)

    def error(bandwidth: float) -> float:
        smoothed = gaussian_filter1d(residuals, bandwidth * GRID_CELLS, mode="reflect", truncate=6.0)
        return float(np.abs(smoothed).sum())

    low, high = 1.0 / GRID_CELLS, 1.0
    if error(low) <= low:
        return error(low)
    while high - low > 1e-4:  # the error decreases with the bandwidth, so they are equal exactly once
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return error(high)


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities whose logits are divided by ``temperature``: above 1 flatter, below 1 sharper.

    >>> apply_temperature(np.array([[0.8, 0.1, 0.1]]), 2.0).round(3).tolist()
    [[0.586, 0.207, 0.207]]
    """
    logits = np.log(np.clip(probabilities, EPSILON, 1.0))
    return np.asarray(softmax(logits / temperature, axis=1), dtype=np.float64)


def fit_temperature(probabilities: Floats, labels: NDArray[Any]) -> float:
    """The temperature with the lowest log loss on these rows, within :data:`TEMPERATURE_RANGE`."""

    def loss(log_temperature: float) -> float:
        return float(log_losses(apply_temperature(probabilities, np.exp(log_temperature)), labels).mean())

    bounds = tuple(np.log(TEMPERATURE_RANGE))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def temperature_out_of_fold(probabilities: Floats, labels: NDArray[Any], part: Ints) -> Floats:
    """Probabilities ``[n, 3]`` of each part, scaled with the temperature fitted on all other parts.

    ``part`` ``[n]`` is the number of each row's part; rows that share a prompt must share a part.
    """
    parts = np.unique(part)
    if len(parts) < 2:
        raise ValueError("fitting a temperature out of fold takes at least two parts")
    adjusted = np.empty_like(probabilities)
    for held_out in parts:
        inside = part == held_out
        temperature = fit_temperature(probabilities[~inside], labels[~inside])
        adjusted[inside] = apply_temperature(probabilities[inside], temperature)
    return adjusted
