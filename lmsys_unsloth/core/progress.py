"""Progress bars for everything that takes more than a few seconds."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lmsys_unsloth.core import ranks

log = logging.getLogger(__name__)

LOG_INTERVAL = 20.0
"""Seconds between two lines of progress in the log, where there is no terminal for a bar."""


class progress:
    """Context manager that shows progress, rate and time left: as a bar on a terminal, else in the log.

    Args:
        what: description of the work.
        total: number of units to be done.
        unit: name of one unit, in the singular.

    >>> with progress("scoring", 100, "row") as bar:
    ...     bar.advance(100)
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.counted_from = 0
        self.text = ""

    def __enter__(self) -> progress:
        self.started = self.logged = time.monotonic()
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal and ranks.current().first:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=console,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total, rate="", note="")
        return self

    def advance(self, count: int) -> None:
        """Add ``count`` finished units; those of the first 50 ms (a resumed run) do not count in the rate."""
        self.done += count
        now = time.monotonic()
        if now - self.started < 0.05:
            self.counted_from = self.done
        rate = (self.done - self.counted_from) / max(now - self.started, 1e-9)
        shown = f"{rate:.1f} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}" if rate else ""
        if self.bar:
            self.bar.update(self.task, completed=self.done, rate=shown)
        elif now - self.logged >= LOG_INTERVAL and self.done < self.total:
            self.logged = now
            left = (self.total - self.done) / rate if rate else 0.0
            log.info(
                "%s: %d of %d, %s, %.0f s left %s", self.what, self.done, self.total, shown, left, self.text
            )

    def note(self, text: str) -> None:
        """Set the text at the end of the bar."""
        self.text = text
        if self.bar:
            self.bar.update(self.task, note=text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        if kind is None:
            log.info("%s: %d %ss in %.1f s", self.what, self.done, self.unit, time.monotonic() - self.started)
