"""Scoring within a given time: what is left of it, and whether the next batch fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lmsys_unsloth.config.durations import in_words

log = logging.getLogger(__name__)

FIRST_SWAP_FACTOR = 1.5
"""Expected time of a swapped row, until one was timed, in times of the same row in the first pass."""

TRUSTED = 3
"""Number of batches of the first pass after which its duration is predicted."""


class TimeLeft:
    """The rest of a time budget, which begins now.

    A batch is expected to take as long, for each token, as the slowest one so far. So only one that is slower
    than all before it can exceed the budget, by its own excess.

    Args:
        seconds: the budget.
        clock: seconds that only increase.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds, self._clock, self._started = seconds, clock, clock()
        self._slowest = 0.0

    @property
    def used(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._started

    def expect(self, tokens: int, seconds: float) -> None:
        """Expect that as many tokens take as many seconds, until a batch was timed."""
        self._expected = seconds / max(tokens, 1)

    def fits(self, tokens: int) -> bool:
        """Whether a batch of so many tokens is expected to end in time."""
        return self.used + tokens * (self._slowest or self._expected) <= self.seconds

    @contextmanager
    def timed(self, tokens: int) -> Iterator[None]:
        """Time a batch."""
        started = self._clock()
        yield
        self._slowest = max(self._slowest, (self._clock() - started) / max(tokens, 1))


class FirstPass:
    """Progress of the first pass, with a warning as soon as it is clear that it exceeds the budget.

    Args:
        budget: the time budget; None: there is none.
        lengths: number of tokens of each row that this rank scores.
        advance: called with the number of rows of each batch.
    """

    def __init__(
        self, budget: TimeLeft | None, lengths: Sequence[int], advance: Callable[[int], None]
    ) -> None:
        self._budget, self._total, self._advance = budget, sum(lengths), advance
        self._batches = self._tokens = 0
        self._started = 0.0 if budget is None else budget.used

    def advance(self, rows: int, tokens: int, computed: bool) -> None:
        """Note a batch of rows, which was computed now or by an interrupted command."""
        self._advance(rows)
        if not computed:
            self._total -= tokens
            return
        self._batches, self._tokens = self._batches + 1, self._tokens + tokens
        if self._budget is None or self._batches != TRUSTED:
            return
        expected = (self._budget.used - self._started) / self._tokens * self._total
        if expected > self._budget.seconds:
            log.warning(
                "eval.time_budget = %s is not enough: scoring all rows once takes about %s; they are scored "
                "nevertheless, none with swapped responses",
                in_words(self._budget.seconds), in_words(expected),
            )  # fmt: skip
