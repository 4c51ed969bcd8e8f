"""Averages are what they say, and fitted weights are the best there are."""

from __future__ import annotations

import numpy as np

from lmsys_unsloth.evaluate import averaging, calibration
from lmsys_unsloth.evaluate.averaging import best_weights
from lmsys_unsloth.evaluate.predictions import Predictions

RANDOM = np.random.default_rng(0)
ROWS = 60
TRUTH = RANDOM.dirichlet([1, 1, 1], ROWS)
LABELS = (RANDOM.random((ROWS, 1)) > TRUTH.cumsum(axis=1)).sum(axis=1).clip(0, 2)


def test_best_weights_are_the_minimum():
    random = np.random.default_rng(1)
    stack = np.stack([TRUTH, random.dirichlet([2, 2, 2], ROWS), random.dirichlet([3, 3, 3], ROWS)])
    found = best_weights(stack, LABELS, steps=5000)
    least = calibration.log_losses(np.tensordot(found, stack, axes=1), LABELS).mean()
    for other in random.dirichlet([1, 1, 1], 200):
        assert least <= calibration.log_losses(np.tensordot(other, stack, axes=1), LABELS).mean() + 1e-6


def test_unlabelled_runs_without_data_description_are_averaged():
    p = Predictions(["1", "2"], np.zeros(2, int), np.eye(3)[:2].astype(np.float32), np.array([-1, -1]))
    q = Predictions(["2", "1"], np.zeros(2, int), np.eye(3)[:2].astype(np.float32), np.array([-1, -1]))
    np.testing.assert_allclose(averaging.average([p, q]).probabilities, [[0.5, 0.5, 0], [0.5, 0.5, 0]])
