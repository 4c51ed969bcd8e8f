"""A time budget ends training in time, with the learning rate schedule completed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lmsys_unsloth.config.durations import Duration
from lmsys_unsloth.train.time_budget import Schedule, TimeBudget, Used, learning_rate_factor


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@dataclass
class Simulated:
    """A training whose step ``n`` takes ``seconds(n)``, and an evaluation ``evaluation`` seconds."""

    budget: float
    steps: int = 100
    seconds: Callable[[int], float] = lambda _: 1.0
    evaluate_every: int | None = None
    evaluation: float = 0.0
    checkpoint: float = 0.0
    """Seconds of writing one after every step."""
    used: Used | None = None
    first: int = 0
    stop_after: int | None = None
    """Killed after so many steps."""
    progress: list[float] = field(default_factory=list)

    def run(self) -> tuple[int, float]:
        """Return the number of steps done, and the seconds used in all."""
        clock = Clock()
        made = TimeBudget(
            self.budget, [100] * self.steps, evaluate_every=self.evaluate_every,
            evaluation_tokens=int(100 * self.evaluation), used=self.used, clock=clock,
        )  # fmt: skip
        for step in range(self.first, self.steps):
            made.step_begins(step)
            self.progress.append(made.progress)
            clock.now += self.seconds(step)
            last = made.step_ends(step) or step == self.steps - 1
            if self.evaluate_every and (last or (step + 1) % self.evaluate_every == 0):
                clock.now += self.evaluation
            clock.now += self.checkpoint
            self.used = made.used
            if last or step + 1 == self.stop_after:
                break
        return step + 1, self.used.seconds


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    training = Simulated(budget=1000.0)
    assert training.run() == (100, pytest.approx(100.0))
    assert training.progress == pytest.approx([(step + 1) / 100 for step in range(100)])


@pytest.mark.parametrize("budget", [5.0, 17.3, 50.0, 99.0])
def test_a_plan_is_shortened_to_the_budget_and_completed(budget: float) -> None:
    training = Simulated(budget=budget)
    done, used = training.run()
    assert done == int(budget) and used <= budget
    assert training.progress[-1] == 1.0
    assert all(one < next for one, next in itertools.pairwise(training.progress))


@pytest.mark.parametrize(
    "seconds",
    [
        lambda step: 30.0 if step == 0 else 1.0,
        lambda step: 1.0 if step < 30 else 2.0,
        lambda step: 2.0 if step < 30 else 1.0,
        lambda step: 1.0 + 0.5 * (step % 3),
    ],
    ids=["compiles first", "slower later", "faster later", "steps of several sizes"],
)
def test_the_schedule_is_completed_at_changing_speed(seconds: Callable[[int], float]) -> None:
    training = Simulated(budget=70.0, seconds=seconds)
    done, used = training.run()
    assert training.progress[-1] == 1.0
    assert used <= 70.0 + seconds(done - 1), "late by more than a step"
    assert used > 55.0 and done < 100
    assert all(one < next for one, next in itertools.pairwise(training.progress))


def test_evaluations_and_checkpoints_count() -> None:
    training = Simulated(budget=60.0, evaluate_every=10, evaluation=4.0, checkpoint=0.5)
    done, used = training.run()
    assert 54.0 < used <= 61.5 and training.progress[-1] == 1.0
    assert done < 60 / 1.5


def test_a_resumed_run_counts_what_was_used_before() -> None:
    whole = Simulated(budget=50.0)
    expected = whole.run()
    first = Simulated(budget=50.0, stop_after=20)
    assert first.run() == (20, pytest.approx(20.0))
    second = Simulated(budget=50.0, first=20, used=first.used)
    assert second.run() == (expected[0], pytest.approx(expected[1]))
    assert [*first.progress, *second.progress] == pytest.approx(whole.progress)
    assert second.progress[-1] == 1.0


def test_a_used_up_budget_ends_training_after_one_step() -> None:
    assert Simulated(budget=50.0, first=20, used=Used(50.0, 0.9)).run()[0] == 21


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_the_schedules_are_those_of_transformers(schedule: Schedule) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=10, num_training_steps=100)
    for step in range(100):
        assert scheduler.get_last_lr()[0] == pytest.approx(learning_rate_factor(schedule, step / 100, 0.1))
        optimizer.step()
        scheduler.step()


def test_durations_are_read_strictly() -> None:
    adapter = TypeAdapter(Duration)

    def read(value: object) -> float:
        return adapter.validate_python(value, strict=True)

    assert [read(text) for text in ("2h", "1h30m", "45m", "90s", "0.5h", 90, 90.0)] == [
        7200, 5400, 2700, 90, 1800, 90, 90,
    ]  # fmt: skip
    for wrong in ("", "2", "h", "2 h", "30m2h", "-1h", "0s", 0, True, "2h ", "1d"):
        with pytest.raises(ValidationError):
            read(wrong)
