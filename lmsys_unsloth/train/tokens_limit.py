"""The size of micro-batches after memory was too small, and its recovery."""

from __future__ import annotations

import math

from lmsys_unsloth.model.batch import Batch

STEPS = 20
"""Number of steps without an out-of-memory error after which larger micro-batches are tried again."""


class TokensLimit:
    """Maximum number of padded tokens in a micro-batch; no limit before the first out-of-memory error.

    An error halves it. After :data:`STEPS` steps without another, it doubles, up to the planned sizes: memory
    may have been fragmented or taken by another process. A size at which memory was too small twice stays
    excluded.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None
        self._failed_once = self._excluded = math.inf
        self._largest = self._steps = 0

    def split(self, batch: Batch) -> list[Batch]:
        """Split a batch into parts within the limit; a longer unit of rows forms its own part."""
        return [batch] if self.tokens is None else batch.split(self.tokens)

    def reduce(self, tokens: int) -> None:
        """Halve the limit after memory was too small for a micro-batch of ``tokens`` padded tokens."""
        if tokens >= self._failed_once:
            self._excluded = min(self._excluded, tokens)
        self._failed_once = min(self._failed_once, tokens)
        self._largest = max(self._largest, tokens)
        self.tokens, self._steps = tokens // 2, 0

    def step_succeeded(self) -> None:
        """Count a step without an error and, if enough have followed each other, double the limit."""
        if self.tokens is None:
            return
        self._steps += 1
        doubled = 2 * self.tokens + 1  # a halved odd number doubles to itself
        if self._steps >= STEPS and doubled < self._excluded:
            self.tokens, self._steps = (None if doubled >= self._largest else doubled), 0
