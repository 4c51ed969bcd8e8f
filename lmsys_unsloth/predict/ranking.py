"""Ranking of several responses to one prompt by predictions for pairs.

The score of a response is its expected share of points against all others, where a win is one point and a
tie half a point. With all pairs compared (a round robin), it is the mean of ``P(win) + P(tie) / 2``. With
more responses it is that of a Bradley–Terry model (1952, doi:10.1093/biomet/39.3-4.324) fitted to the
comparisons of a Swiss-system tournament: each round compares responses with about the same points so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Pair = tuple[int, int]
Compare = Callable[[Sequence[Pair]], NDArray[np.float32]]
"""Probabilities ``[pairs, 3]`` that the first response of each pair is preferred, the second, or neither."""

ROUND_ROBIN = 8
"""Largest number of responses of which all pairs are compared by default: 28 pairs."""
EXTRA_ROUNDS = 2
"""Rounds beyond ``log2`` of the number of responses, which would suffice to find the best without errors."""
PRIOR = 0.1
"""Weight of the penalty on squared worths: they stay finite where a response wins or loses everything."""


@dataclass(frozen=True)
class Ranking:
    """Responses by how likely they are preferred to the others."""

    order: list[int]
    """Positions of the responses, the best one first; equal scores in the given order."""
    scores: NDArray[np.float32]
    """``[responses]``: expected share of points against all others, from 0 to 1; 0.5 for a single one."""
    comparisons: int
    """Number of pairs that were compared."""

    @property
    def best(self) -> int:
        """Position of the best response."""
        return self.order[0]


def rank(count: int, compare: Compare, *, round_robin: int = ROUND_ROBIN) -> Ranking:
    """Rank ``count`` responses; see the module's description.

    Which of two responses is shown first alternates, so that a preference for a position hardly matters.

    >>> first_is_best = lambda pairs: np.array([[a < b, a > b, 0] for a, b in pairs], dtype=np.float32)
    >>> rank(3, first_is_best).order
    [0, 1, 2]
    """
    if count == 1:
        return Ranking([0], np.array([0.5], dtype=np.float32), 0)
    points = np.full((count, count), np.nan)
    if count <= round_robin:
        _play([(a, b) for a in range(count) for b in range(a + 1, count)], points, compare)
        scores = np.nanmean(points, axis=1)
    else:
        for _ in range(math.ceil(math.log2(count)) + EXTRA_ROUNDS):
            _play(_next_round(points), points, compare)
        scores = _expected_points(points)
    order = np.argsort(-scores, kind="stable").tolist()
    return Ranking(order, scores.astype(np.float32), int(np.isfinite(points).sum() // 2))


def _play(pairs: Sequence[Pair], points: NDArray[np.float64], compare: Compare) -> None:
    """Compare pairs, and enter the expected points of both into ``points`` ``[responses, responses]``."""
    if not pairs:
        return
    shown = [(a, b) if (a + b) % 2 else (b, a) for a, b in pairs]
    for (a, b), (first, _, tie) in zip(shown, compare(shown).astype(np.float64), strict=True):
        points[a, b] = first + tie / 2
        points[b, a] = 1 - points[a, b]


def _next_round(points: NDArray[np.float64]) -> list[Pair]:
    """Pair responses by their mean points, each with the next one that it has not met; one may be left."""
    means = np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else 0.5 for row in points])
    waiting = np.argsort(-means, kind="stable").tolist()
    pairs = []
    while len(waiting) > 1:
        one = waiting.pop(0)
        other = next((each for each in waiting if np.isnan(points[one, each])), None)
        if other is not None:
            waiting.remove(other)
            pairs.append((one, other))
    return pairs


def _expected_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean points against all others by worths fitted to the comparisons that were made."""
    count = len(points)
    one, other = np.nonzero(np.isfinite(points))
    won = points[one, other]

    def loss(worth: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        gap = worth[one] - worth[other]
        value = np.logaddexp(0, -gap) + (1 - won) * gap
        slope = 1 / (1 + np.exp(-gap)) - won
        gradient = np.bincount(one, slope, count) - np.bincount(other, slope, count)
        return float(value.sum() + PRIOR * (worth**2).sum()), gradient + 2 * PRIOR * worth

    worth = minimize(loss, np.zeros(count), jac=True, method="L-BFGS-B").x
    chances = 1 / (1 + np.exp(worth[None, :] - worth[:, None]))
    np.fill_diagonal(chances, np.nan)
    return np.asarray(np.nanmean(chances, axis=1), dtype=np.float64)
