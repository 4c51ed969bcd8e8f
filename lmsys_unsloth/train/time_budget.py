"""Training within a given time: fewer steps than planned, with the learning rate schedule completed."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmsys_unsloth.core.files import write_json

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]

_FILE = "time_budget.json"
"""Name of the file in a checkpoint."""

RECENT = 20
"""Number of steps whose speed predicts that of the following ones."""

UNTIMED = 1
"""Number of steps at the start of a process that are not timed: kernels are compiled in them."""

TRUSTED = 2
"""Number of timed steps before the plan is shortened."""


@dataclass(frozen=True)
class Used:
    """What a checkpoint stores of a time budget."""

    seconds: float
    """Seconds of training so far, in all processes."""
    progress: float
    """Fraction of the learning rate schedule that is done."""
    rate: float | None = None
    """Tokens per second of recent steps; None before any was timed."""

    @classmethod
    def read(cls, checkpoint: Path) -> Used | None:
        """Read what :meth:`write` wrote; None for a checkpoint of a training without a budget."""
        file = checkpoint / _FILE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def write(self, checkpoint: Path) -> None:
        """Write into the folder of a checkpoint."""
        write_json(checkpoint / _FILE, dataclasses.asdict(self))


class TimeBudget:
    """Decides after every step how many more fit, and how far the learning rate schedule has come.

    The schedule is a function of ``progress``, from 0 to 1. A step with R steps left, itself included, moves
    it by ``(1 - progress) / R``: by equal parts as long as the prediction holds, and always to 1 in the last
    step. Speed is predicted in tokens per second, as steps differ in length, by the median of the last
    :data:`RECENT` steps.

    Args:
        seconds: the budget, for steps, evaluations and checkpoints.
        tokens: number of tokens of every planned step.
        evaluate_every: steps between two evaluations; None if there are none.
        evaluation_tokens: number of tokens that an evaluation reads.
        used: what an earlier process used; None for a new training.
        clock: seconds that only increase.
    """

    def __init__(
        self, seconds: float, tokens: Sequence[int], *, evaluate_every: int | None = None,
        evaluation_tokens: int = 0, used: Used | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.seconds, self.evaluate_every, self.evaluation_tokens = seconds, evaluate_every, evaluation_tokens
        self.progress = 0.0 if used is None else used.progress
        self._before = 0.0 if used is None else used.seconds
        self._ends = [0, *itertools.accumulate(tokens)]
        self._clock, self._started = clock, clock()
        rate = None if used is None else used.rate
        self._rates: deque[float] = deque([] if rate is None else [rate] * TRUSTED, maxlen=RECENT)
        self._steps = 0
        self._pauses: deque[float] = deque(maxlen=RECENT)
        self._evaluation: float | None = None
        self._began = self._ended = self._started

    @property
    def used(self) -> Used:
        """What a checkpoint stores now."""
        rate = statistics.median(self._rates) if self._rates else None
        return Used(self._before + self._clock() - self._started, self.progress, rate)

    def step_begins(self, step: int) -> None:
        """Note that step ``step``, counted from 0, begins; ``progress`` is then that after the step."""
        self._began = self._clock()
        if self._steps:
            pause = self._began - self._ended
            if self.evaluate_every and step % self.evaluate_every == 0:
                self._evaluation = pause
            else:
                self._pauses.append(pause)
        self.progress += (1 - self.progress) / max(1, self._steps_left(step, evaluated=step))

    def step_ends(self, step: int) -> bool:
        """Note that step ``step`` has ended; returns whether it was the last one that fits."""
        self._ended = self._clock()
        self._steps += 1
        if self._steps > UNTIMED:
            tokens = self._ends[step + 1] - self._ends[step]
            self._rates.append(tokens / max(self._ended - self._began, 1e-9))
        return self.progress >= 1.0 or self._steps_left(step + 1, evaluated=step) == 0

    def _steps_left(self, step: int, *, evaluated: int) -> int:
        """Number of planned steps from ``step`` on that fit; evaluated was up to ``evaluated`` steps."""
        planned, left = len(self._ends) - 1 - step, self.seconds - self.used.seconds
        if len(self._rates) < TRUSTED:
            return planned if left > 0 else 0
        rate, every = statistics.median(self._rates), self.evaluate_every
        pause = statistics.fmean(self._pauses) if self._pauses else 0.0
        # Until one was timed: it reads without gradients, so it takes less than a step of as many tokens.
        evaluation = self.evaluation_tokens / rate if self._evaluation is None else self._evaluation

        def cost(steps: int) -> float:
            tokens = self._ends[step + steps] - self._ends[step]
            # Those before the last step's end, and the one at it.
            evaluations = (step + steps - 1) // every - evaluated // every + 1 if every else 0
            return tokens / rate + (steps + 1) * pause + evaluations * evaluation

        return max(0, bisect.bisect_right(range(planned + 1), left, lo=1, key=cost) - 1)


def learning_rate_factor(schedule: Schedule, progress: float, warmup: float) -> float:
    """Return the factor of the peak learning rate at a fraction of the training.

    The formulas are those of ``transformers.get_scheduler`` with ``progress`` for step / steps.

    Args:
        schedule: name of the schedule.
        progress: fraction of the training that is done, 0 to 1.
        warmup: fraction in which the learning rate rises from 0; unused by ``constant``.
    """
    if schedule == "constant":
        return 1.0
    if progress < warmup:
        return progress / warmup
    if schedule == "constant_with_warmup":
        return 1.0
    decayed = (progress - warmup) / max(1e-9, 1 - warmup)
    return (
        max(0.0, 1 - decayed) if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, decayed)))
    )
