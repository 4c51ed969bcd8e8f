"""Progress in the log, where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from lmsys_unsloth.core import progress as module
from lmsys_unsloth.core.progress import LOG_INTERVAL, progress


class Clock:
    """Replacement for ``time`` with a settable ``monotonic()``."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    monkeypatch.setattr(module, "time", clock := Clock())
    caplog.set_level(logging.INFO, logger=module.__name__)
    return clock


def test_the_log_gets_one_line_per_interval_and_one_at_the_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with progress("scoring", 100, "row") as bar:
        clock.now += LOG_INTERVAL / 2
        bar.advance(20)
        assert not caplog.messages
        clock.now += LOG_INTERVAL / 2
        bar.note("loss 1.1")
        bar.advance(20)
        clock.now += LOG_INTERVAL
        bar.advance(60)
    assert caplog.messages == [
        "scoring: 40 of 100, 2.0 rows/s, 30 s left loss 1.1",
        "scoring: 100 rows in 40.0 s",
    ]


def test_steps_of_a_resumed_run_do_not_count_in_the_rate(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with progress("training", 100, "step") as bar:
        bar.advance(90)
        clock.now += LOG_INTERVAL
        bar.advance(5)
    assert caplog.messages[0].startswith("training: 95 of 100, 4.0 s/step, 20 s left")


def test_an_error_ends_progress_without_a_message(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError), progress("scoring", 100, "row"):
        raise RuntimeError
    assert not caplog.messages
