"""Scoring ends within its time budget."""

from __future__ import annotations

import time

import pytest

from lmsys_unsloth.evaluate.passes.time_left import FirstPass, TimeLeft


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def exchange(budget: TimeLeft, clock: Clock, sizes: list[int], seconds_per_token: float) -> int:
    """Score batches as long as they fit; returns their number."""
    for number, size in enumerate(sizes):
        if not budget.fits(size):
            return number
        with budget.timed(size):
            clock.now += size * seconds_per_token
    return len(sizes)


@pytest.mark.parametrize("speed", [0.5, 1.0, 1.4])
def test_batches_are_scored_until_the_next_would_be_late(speed: float) -> None:
    clock = Clock()
    budget = TimeLeft(100.0, clock)
    clock.now += 20.0
    budget.expect(10, 15.0)
    done = exchange(budget, clock, [10] * 100, speed)
    assert budget.used <= 100 < budget.used + 10 * speed
    assert done == int(80 // (10 * speed))


def test_the_slowest_batch_so_far_predicts_the_next() -> None:
    clock = Clock()
    budget = TimeLeft(10.0, clock)
    budget.expect(1, 0.1)
    for seconds in (0.5, 3.0, 0.5):
        with budget.timed(1):
            clock.now += seconds
    assert budget.fits(2) and not budget.fits(3)


def test_no_batch_is_scored_when_the_first_pass_took_all_the_time() -> None:
    clock = Clock()
    budget = TimeLeft(10.0, clock)
    clock.now += 10.0
    budget.expect(100, 10.0)
    assert not budget.fits(1)


def test_a_first_pass_that_is_too_slow_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    first = FirstPass(TimeLeft(60.0, clock), [10] * 20, lambda rows: None)
    first.advance(4, 40, False)  # by an interrupted command: takes no time
    for _ in range(16):
        clock.now += 30.0
        first.advance(1, 10, True)
    assert caplog.text.count("eval.time_budget = 1m is not enough") == 1
    assert "takes about 8m" in caplog.text


def test_a_first_pass_that_is_fast_enough_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    clock, shown = Clock(), []
    first = FirstPass(TimeLeft(60.0, clock), [10] * 20, shown.append)
    for _ in range(10):
        clock.now += 5.0
        first.advance(2, 20, True)
    assert not caplog.text and shown == [2] * 10


def test_the_real_clock_is_not_exceeded() -> None:
    budget = TimeLeft(0.5, time.perf_counter)
    budget.expect(1, 0.01)
    done = 0
    while budget.fits(1):
        with budget.timed(1):
            time.sleep(0.005)
        done += 1
    assert done > 0 and budget.used >= 0.25
