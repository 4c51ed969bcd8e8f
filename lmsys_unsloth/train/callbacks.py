"""What happens beside the steps of a training: progress bar, logged metrics, and checkpoints."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lmsys_unsloth.model.unsloth_import import import_unsloth

import_unsloth()  # patches transformers, so it must come before it

from transformers import TrainerCallback

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.train.metric_logger import MetricLogger
from lmsys_unsloth.train.time_budget import TimeBudget

log = logging.getLogger(__name__)


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Shows a progress bar and passes losses on to the metric logger."""

    def __init__(self, steps: int, metric_logger: MetricLogger) -> None:
        self.steps, self.metric_logger = steps, metric_logger

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = progress("training", self.steps, "step")
        self.bar.__enter__()
        self.bar.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        self.bar.note(f"loss {logs['loss']:.3f}")
        log.debug("step %d: %s", state.global_step, json.dumps(logs))
        wanted = ("loss", "learning_rate", "grad_norm")
        self.metric_logger.log({f"train/{k}": logs[k] for k in wanted if k in logs}, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.__exit__(None, None, None)


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint ``minutes`` after the last one, at the end and on Ctrl-C; marks complete ones.

    All but the ``keep`` newest complete ones are deleted.
    """

    def __init__(self, run: Run, minutes: float, keep: int) -> None:
        self.run, self.seconds, self.keep = run, 60 * minutes, keep
        self.signalled = False
        """Whether this process got a signal."""
        self.interrupted = False
        """Whether any rank had got a signal at the end of the last step, so that all stop after it."""

    @contextlib.contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Let Ctrl-C (SIGINT) and SIGTERM save a checkpoint after the step; a second one ends at once.

        Raised in the middle of a step, a KeyboardInterrupt can get lost in a library's handlers.

        Raises:
            KeyboardInterrupt: in the block, after the checkpoint.
        """

        def handle(number: int, frame: Any) -> None:
            if self.signalled:
                raise KeyboardInterrupt
            self.signalled = True
            log.warning("stopping after this step, with a checkpoint; once more: stop at once")

        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(each, handle) for each in signals]
        try:
            yield
        finally:
            for each, handler in zip(signals, before, strict=True):
                signal.signal(each, handler)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.interrupted = ranks.current().any(self.signalled)
        ended = state.global_step >= state.max_steps
        due = time.monotonic() - self.last >= self.seconds
        control.should_save |= ended or due or self.interrupted

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ranks.current().first:
            self.run.mark_complete(state.global_step, self.keep)
        self.last = time.monotonic()
        if self.interrupted:
            ranks.current().wait()  # the launcher ends all ranks when the first one has ended
            raise KeyboardInterrupt


class TimeBudgetCallback(TrainerCallback):  # type: ignore[misc]
    """Ends training with the last step that fits into a time budget, by the clock of the first rank."""

    def __init__(self, budget: TimeBudget) -> None:
        self.budget = budget

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.budget.step_begins(state.global_step)
        self.budget.progress = ranks.current().share(self.budget.progress)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = ranks.current().share(self.budget.step_ends(state.global_step - 1))
        if last and state.global_step < state.max_steps:
            control.should_training_stop = True


class FiniteLossCallback(TrainerCallback):  # type: ignore[misc]
    """Stops at a logged loss that is not finite, before anything computed from it is saved.

    Args:
        describe: returns the error, given the first and last step since the last logged loss and that loss.
    """

    def __init__(self, describe: Callable[[int, int, float], UserError]) -> None:
        self.describe, self.logged = describe, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.logged = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise self.describe(self.logged + 1, state.global_step, logs["loss"])
        self.logged = state.global_step
