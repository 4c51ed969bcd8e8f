"""Rankings find the best responses, with all pairs of few and a share of the pairs of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from lmsys_unsloth.predict.ranking import Pair, rank


class Judge:
    """Compares by known worths, with ties; notes the pairs."""

    def __init__(self, worth: NDArray[np.float64]) -> None:
        self.worth, self.pairs = worth, list[Pair]()

    def __call__(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        self.pairs += pairs
        a, b = np.array(pairs).T
        first, second = self.worth[a], self.worth[b]
        strength = np.exp(np.stack([first, second, (first + second) / 2], axis=1))
        return np.asarray(strength / strength.sum(axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_few_responses_are_all_compared_and_scored_by_mean_points(count: int) -> None:
    judge = Judge(np.random.default_rng(count).normal(size=count))
    found = rank(count, judge)
    assert found.comparisons == len({frozenset(pair) for pair in judge.pairs}) == count * (count - 1) // 2
    assert found.order == np.argsort(-judge.worth).tolist()
    assert found.scores.mean() == pytest.approx(0.5, abs=1e-6)
    p = judge([(0, other) for other in range(1, count)])
    assert found.scores[0] == pytest.approx((p[:, 0] + p[:, 2] / 2).mean(), abs=1e-6)


@pytest.mark.parametrize("count", [9, 32, 100])
def test_many_responses_take_few_comparisons_and_the_best_are_found(count: int) -> None:
    judge = Judge(np.random.default_rng(count).normal(scale=2, size=count))
    found = rank(count, judge)
    assert found.comparisons <= (np.ceil(np.log2(count)) + 2) * count / 2
    assert len({frozenset(pair) for pair in judge.pairs}) == len(judge.pairs) == found.comparisons
    true = np.argsort(-judge.worth).tolist()
    assert found.best in true[:2]
    assert np.corrcoef(found.scores, judge.worth.argsort().argsort())[0, 1] > 0.9
    assert ((found.scores > 0) & (found.scores < 1)).all()


def test_a_single_response_needs_no_comparison() -> None:
    found = rank(1, Judge(np.zeros(1)))
    assert (found.order, found.scores.tolist(), found.comparisons, found.best) == ([0], [0.5], 0, 0)


def test_each_response_is_shown_first_about_as_often_as_second() -> None:
    judge = Judge(np.zeros(7))
    rank(7, judge)
    first = np.bincount([a for a, _ in judge.pairs], minlength=7)
    assert first.min() == first.max() == 3
