"""Averages are what they say, and fitted weights are the best there are."""

from __future__ import annotations

import numpy as np

from lmsys_unsloth.evaluate import averaging, calibration
from lmsys_unsloth.evaluate.averaging import best_weights
from lmsys_unsloth.evaluate.predictions import Predictions, concatenate, one_order, with_swap

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


def test_an_average_remembers_whether_all_models_scored_both_orders():
    once = Predictions(["1", "2"], np.zeros(2, int), np.eye(3)[:2].astype(np.float32), np.array([0, 1]))
    both, first = with_swap(once, once.probabilities), with_swap(once, once.probabilities[:1], np.array([0]))
    assert one_order(once).tolist() == [1, 1] and one_order(first).tolist() == [0, 1]
    assert one_order(averaging.average([both, both])).tolist() == [0, 0]
    assert one_order(averaging.average([both, first])).tolist() == [1, 1]
    fold = concatenate([averaging.average([both, both]), both, once])
    assert one_order(fold).tolist() == [0, 0, 0, 0, 1, 1]
