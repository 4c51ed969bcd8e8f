"""Rows of concurrent requests, scored together by one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison

Probabilities = NDArray[np.float32]
Predict = Callable[[Sequence[Comparison]], Probabilities]
"""Returns probabilities ``[rows, 3]``."""


class Busy(Exception):
    """So many rows wait that another request would have to wait too long."""


class Batcher:
    """Scores what waits: while one batch is computed, the rows of later requests gather for the next.

    Args:
        predict: scores rows; called by one thread only.
        rows_per_batch: largest number of rows that are scored together, unless one request has more.
        max_waiting: number of waiting rows from which requests are refused.
    """

    def __init__(self, predict: Predict, *, rows_per_batch: int = 256, max_waiting: int = 8192) -> None:
        self._predict, self._rows_per_batch, self._max_waiting = predict, rows_per_batch, max_waiting
        self._waiting: deque[tuple[Sequence[Comparison], Future[Probabilities]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of rows that wait to be scored."""
        with self._changed:
            return sum(len(rows) for rows, _ in self._waiting)

    def submit(self, rows: Sequence[Comparison]) -> Future[Probabilities]:
        """Score rows in the background.

        Raises:
            Busy: too many rows wait already, or the server is being stopped.
        """
        future: Future[Probabilities] = Future()
        with self._changed:
            if self._closed or sum(len(each) for each, _ in self._waiting) >= self._max_waiting:
                raise Busy
            self._waiting.append((rows, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Accept no more rows, and return when all accepted ones are scored."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            rows = [row for each, _ in batch for row in each]
            try:
                found = self._predict(rows)
            except Exception as error:
                self._one_by_one(batch, error)
                continue
            start = 0
            for each, future in batch:
                future.set_result(found[start : start + len(each)])
                start += len(each)

    def _next_batch(self) -> list[tuple[Sequence[Comparison], Future[Probabilities]]]:
        """Requests in the order of arrival; empty when closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch, size = list[tuple[Sequence[Comparison], Future[Probabilities]]](), 0
            while self._waiting and (not batch or size + len(self._waiting[0][0]) <= self._rows_per_batch):
                batch.append(self._waiting.popleft())
                size += len(batch[-1][0])
            return batch

    def _one_by_one(
        self, batch: Sequence[tuple[Sequence[Comparison], Future[Probabilities]]], error: Exception
    ) -> None:
        """Find the request that can't be scored; the others get their results."""
        for rows, future in batch:
            if len(batch) == 1 and not isinstance(error, UserError):
                future.set_exception(error)
                continue
            try:
                future.set_result(self._predict(rows))
            except Exception as own:
                future.set_exception(own)
