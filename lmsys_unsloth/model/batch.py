"""Token ids → batches of rows that are computed together."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsys_unsloth.model.packing import to_device

MicroBatch = tuple[int, ...]
"""Indices of rows that are computed together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows concatenated without padding; each ends where its answer must follow."""

    input_ids: Tensor
    """int64 ``[tokens]``."""
    lengths: tuple[int, ...]
    """Number of tokens of each row; Python integers, so that reading them never waits for a GPU."""
    targets: Tensor
    """float32 ``[rows, answers]``: probability of each answer in ``LABELS`` order, then that of the fourth if
    there is one; zeros when unlabelled."""
    rows_per_unit: int = 1
    """Number of neighbouring rows that :meth:`split` keeps together: 2 for rows and their swapped copies."""
    offsets: Tensor | None = None
    """float32 ``[rows, answers]``, added to the logits; None: nothing is."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Number of rows × number of tokens of the longest, which budgets limit."""
        return len(self) * max(self.lengths)

    def to(self, device: torch.device) -> Batch:
        input_ids, targets = (to_device(values, device) for values in (self.input_ids, self.targets))
        offsets = None if self.offsets is None else to_device(self.offsets, device)
        return Batch(input_ids, self.lengths, targets, self.rows_per_unit, offsets)

    def add_offsets(self, logits: Tensor, scale: float) -> Tensor:
        """Multiply logits ``[rows, answers]`` by ``scale`` and add the offsets, if there are any."""
        return logits if self.offsets is None else scale * logits + self.offsets

    def split(self, tokens: int) -> list[Batch]:
        """Split the rows into batches of at most ``tokens`` padded tokens; a longer unit forms its own batch.

        >>> batch = collate([np.arange(4), np.arange(5), np.arange(2)], [(0, 0, 0)] * 3)
        >>> [part.lengths for part in batch.split(10)]
        [(4, 5), (2,)]
        """
        ids = torch.split(self.input_ids, list(self.lengths))
        starts = range(0, len(self), self.rows_per_unit)
        units = [range(start, start + self.rows_per_unit) for start in starts]
        return [
            Batch(
                torch.cat([ids[row] for row in part]),
                tuple(self.lengths[row] for row in part),
                torch.stack([self.targets[row] for row in part]),
                self.rows_per_unit,
                None if self.offsets is None else torch.stack([self.offsets[row] for row in part]),
            )
            for part in split_by_budget(units, self.lengths, tokens, rows_per_batch=len(self))
        ]


def collate(
    ids: Sequence[np.ndarray],
    targets: Sequence[Sequence[float]],
    *,
    rows_per_unit: int = 1,
    offsets: NDArray[np.float64] | None = None,
) -> Batch:
    """Concatenate rows of token ids, their targets ``[rows, answers]`` and, if given, offsets of that shape.

    >>> batch = collate([np.array([5, 6, 7]), np.array([8])], [(1, 0, 0), (0, 0, 1)])
    >>> batch.input_ids.tolist(), batch.lengths
    ([5, 6, 7, 8], (3, 1))
    """
    concatenated = np.concatenate([np.asarray(row_ids, dtype=np.int64) for row_ids in ids])
    lengths = tuple(len(row_ids) for row_ids in ids)
    target_tensor = torch.tensor(np.asarray(targets, dtype=np.float32))
    offset_tensor = None if offsets is None else torch.tensor(offsets, dtype=torch.float32)
    return Batch(torch.from_numpy(concatenated), lengths, target_tensor, rows_per_unit, offset_tensor)


def target(
    label: int | None, soft_label: Sequence[float] | None, *, answers: int = 3, both_bad: bool = False
) -> tuple[float, ...]:
    """Return the target distribution of a row: its soft label, else its label one-hot, else zeros.

    Of four ``answers`` the last is "both bad", which gets the probability of a tie if ``both_bad`` says so.

    >>> target(1, None)
    (0.0, 1.0, 0.0)
    >>> target(2, None, answers=4, both_bad=True)
    (0.0, 0.0, 0.0, 1.0)
    """
    a, b, tie = soft_label if soft_label else (float(label == outcome) for outcome in range(3))
    if answers == 3:
        return a, b, tie
    return (a, b, 0.0, tie) if both_bad else (a, b, tie, 0.0)


def by_length(lengths: Sequence[int], tokens_per_batch: int) -> list[MicroBatch]:
    """Group all rows by length into batches of at most ``tokens_per_batch`` padded tokens.

    The longest come first, so that running out of memory happens at the start and not at the end.

    >>> by_length([3, 9, 4], tokens_per_batch=9)
    [(1,), (2, 0)]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return list(
        split_by_budget([(row,) for row in order], lengths, tokens_per_batch, rows_per_batch=len(lengths))
    )


def share_out(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Divide items into parts of about equal cost; returns the indices of each part, in ascending order.

    The costliest items come first, each to the part that has least so far: no part then exceeds 4/3 of the
    best possible maximum (Graham 1969, doi:10.1137/0117039). Parts are empty where there are fewer items.

    >>> share_out([5, 1, 4, 2], parts=2)
    [[0, 1], [2, 3]]
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    least = [(0, part) for part in range(parts)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        total, part = heapq.heappop(least)
        shares[part].append(item)
        heapq.heappush(least, (total + costs[item], part))
    return [sorted(share) for share in shares]


def split_by_budget(
    units: Sequence[Sequence[int]], lengths: Sequence[int], tokens_per_batch: int, rows_per_batch: int
) -> Iterator[MicroBatch]:
    """Group neighbouring units, row indices that must stay together, into batches.

    A batch holds at most ``tokens_per_batch`` padded tokens; a larger unit forms its own batch.
    """
    batch: list[int] = []
    longest = 0
    for unit in units:
        longest_with = max(longest, *(lengths[row] for row in unit))
        rows = len(batch) + len(unit)
        if batch and (rows * longest_with > tokens_per_batch or rows > rows_per_batch):
            yield tuple(batch)
            batch, longest_with = [], max(lengths[row] for row in unit)
        batch += unit
        longest = longest_with
    if batch:
        yield tuple(batch)
