"""After an out-of-memory error micro-batches become smaller, and larger again when none follows."""

from __future__ import annotations

import numpy as np

from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.train.tokens_limit import STEPS, TokensLimit


def after_good_steps(limit: TokensLimit, count: int = STEPS) -> int | None:
    for _ in range(count):
        limit.step_succeeded()
    return limit.tokens


def test_there_is_no_limit_before_an_error() -> None:
    limit, batch = TokensLimit(), collate([np.arange(9)] * 4, [(0, 0, 0)] * 4)
    assert after_good_steps(limit) is None and limit.split(batch) == [batch]
    limit.reduce(36)
    assert [len(part) for part in limit.split(batch)] == [2, 2]


def test_a_limit_recovers_to_the_planned_size() -> None:
    for tokens in (8000, 8001):
        limit = TokensLimit()
        limit.reduce(tokens)
        assert after_good_steps(limit, STEPS - 1) == 4000
        assert after_good_steps(limit, 1) is None


def test_a_limit_that_was_halved_twice_doubles_step_by_step() -> None:
    limit = TokensLimit()
    limit.reduce(8000)
    limit.reduce(4000)
    assert limit.tokens == 2000
    assert after_good_steps(limit) == 4001
    assert after_good_steps(limit) is None


def test_a_size_at_which_memory_was_too_small_twice_stays_excluded() -> None:
    limit = TokensLimit()
    limit.reduce(8000)
    limit.reduce(4000)
    after_good_steps(limit)
    limit.reduce(4000)
    assert after_good_steps(limit, 10 * STEPS) == 2000
    other = TokensLimit()
    other.reduce(8000)
    after_good_steps(other)
    other.reduce(8000)
    assert after_good_steps(other, 10 * STEPS) == 4000
