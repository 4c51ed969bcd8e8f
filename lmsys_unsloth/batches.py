"""Token ids → batches: which rows are computed together, and which are averaged in one optimiser step."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WINDOW_STEPS = 8
"""Rows of so many optimiser steps are sorted by length together: less padding, still near-random steps."""

PLANNED_TOKENS = 2048
"""Of a micro-batch, where ``train.tokens_per_micro_batch`` is auto."""

MOST_TOKENS = 8192
"""Of a joined micro-batch: by arithmetic 4-bit weights then cost 3.5% of a step of Llama 3 8B, not 14%."""

MicroBatch = tuple[int, ...]
Step = tuple[MicroBatch, ...]
AnswerIds = Sequence[Sequence[int]]
"""Token ids of the three answers in ``LABELS`` order; one id each unless the template allows several."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows one behind the other, without padding; each ends where its answer must follow."""

    input_ids: Tensor
    """int64 ``[tokens]``."""
    lengths: tuple[int, ...]
    """Tokens of each row. Plain numbers: reading them never waits for a GPU."""
    targets: Tensor
    """float32 ``[rows, 3]``: probability of each answer in ``LABELS`` order; zeros when unlabelled."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """What budgets count: rows times the longest of them."""
        return len(self) * max(self.lengths)

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.lengths, self.targets.to(device))

    def split(self, tokens: int) -> list[Batch]:
        """The same rows in batches of at most so many padded tokens; a longer row stays alone.

        >>> batch = collate([np.arange(4), np.arange(5), np.arange(2)], [(0, 0, 0)] * 3)
        >>> [part.lengths for part in batch.split(10)]
        [(4, 5), (2,)]
        """
        ids, rows = torch.split(self.input_ids, list(self.lengths)), range(len(self))
        return [
            Batch(
                torch.cat([ids[row] for row in part]),
                tuple(self.lengths[row] for row in part),
                self.targets[list(part)],
            )
            for part in _cut([(row,) for row in rows], self.lengths, tokens, rows_per_batch=len(self))
        ]


def collate(ids: Sequence[np.ndarray], targets: Sequence[Sequence[float]]) -> Batch:
    """Put rows one behind the other.

    >>> batch = collate([np.array([5, 6, 7]), np.array([8])], [(1, 0, 0), (0, 0, 1)])
    >>> batch.input_ids.tolist(), batch.lengths
    ([5, 6, 7, 8], (3, 1))
    """
    joined = np.concatenate([np.asarray(row_ids, dtype=np.int64) for row_ids in ids])
    lengths = tuple(len(row_ids) for row_ids in ids)
    return Batch(torch.from_numpy(joined), lengths, torch.tensor(np.asarray(targets, dtype=np.float32)))


def target(label: int | None, soft_label: Sequence[float] | None) -> tuple[float, ...]:
    """What a row is trained towards: its soft label, else its label one-hot, else zeros.

    >>> target(1, None)
    (0.0, 1.0, 0.0)
    """
    return tuple(soft_label) if soft_label else tuple(float(label == answer) for answer in range(3))


def consecutive(sizes: Iterable[int]) -> list[list[int]]:
    """Number rows in order and group them by ``sizes``.

    >>> consecutive([1, 2])
    [[0], [1, 2]]
    """
    numbers = itertools.count()
    return [[next(numbers) for _ in range(size)] for size in sizes]


def by_length(lengths: Sequence[int], tokens_per_batch: int) -> list[MicroBatch]:
    """All rows once, longest first, in batches of at most ``tokens_per_batch`` padded tokens.

    Longest first, so that a batch too large for the memory fails at once and not at the end.

    >>> by_length([3, 9, 4], tokens_per_batch=9)
    [(1,), (2, 0)]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return list(_cut([(row,) for row in order], lengths, tokens_per_batch, rows_per_batch=len(lengths)))


def plan_steps(
    units: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    epochs: int,
    rows_per_step: int,
    tokens_per_micro_batch: int,
    seed: int,
    tokens_per_step: int | None = None,
) -> list[Step]:
    """Every optimiser step of the training, decided before it starts and the same for the same seed.

    Args:
        units: row indices that must be averaged in the same step (a row and its mirror, say).
        lengths: tokens of each row.
        rows_per_step: upper limit on rows in a step; a unit larger than that is a step of its own.
        tokens_per_step: upper limit on tokens in a step, so that steps of long rows are not dearer than
            others; None for none.
        tokens_per_micro_batch: upper limit on padded tokens in one forward pass.

    Returns:
        Steps of micro-batches of row indices. Each epoch holds every row exactly once.
    """
    random = np.random.default_rng(seed)
    longest = [max(lengths[row] for row in unit) for unit in units]
    steps: list[Step] = []
    for _ in range(epochs):
        order = random.permutation(len(units))
        window = WINDOW_STEPS * rows_per_step
        micro_batches: list[MicroBatch] = []
        for start in range(0, len(order), window):
            rows = sorted(
                (int(unit) for unit in order[start : start + window]), key=lambda unit: longest[unit]
            )
            budget = min(tokens_per_micro_batch, tokens_per_step or tokens_per_micro_batch)
            cut = list(_cut([units[unit] for unit in rows], lengths, budget, rows_per_step))
            micro_batches += [cut[i] for i in random.permutation(len(cut))]
        steps += _fill_steps(micro_batches, lengths, rows_per_step, tokens_per_step or sys.maxsize)
    return steps


def joined(step: Step, lengths: Sequence[int], tokens: int) -> Step:
    """The same rows in fewer micro-batches of at most ``tokens``; for packed rows, whose lengths may differ.

    >>> joined(((0,), (1, 2), (3,)), [5, 2, 2, 4], tokens=9)
    ((0, 1, 2), (3,))
    """
    parts: list[MicroBatch] = []
    for micro_batch in step:
        together = (*parts[-1], *micro_batch) if parts else ()
        if together and sum(lengths[row] for row in together) <= tokens:
            parts[-1] = together
        else:
            parts.append(micro_batch)
    return tuple(parts)


def _cut(
    units: Sequence[Sequence[int]], lengths: Sequence[int], tokens_per_batch: int, rows_per_batch: int
) -> Iterator[MicroBatch]:
    """Neighbouring units together as long as rows × longest stays within the budget."""
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


def _fill_steps(
    micro_batches: Sequence[MicroBatch], lengths: Sequence[int], rows_per_step: int, tokens_per_step: int
) -> Iterator[Step]:
    step: list[MicroBatch] = []
    for micro_batch in micro_batches:
        rows = [row for part in [*step, micro_batch] for row in part]
        if step and (len(rows) > rows_per_step or sum(lengths[row] for row in rows) > tokens_per_step):
            yield tuple(step)
            step = []
        step.append(micro_batch)
    if step:
        yield tuple(step)


def padding_share(micro_batches: Sequence[MicroBatch], lengths: Sequence[int]) -> float:
    """Share of positions that would be padding, 0 to 1, if each batch were padded to its longest row."""
    computed = sum(len(rows) * max(lengths[row] for row in rows) for rows in micro_batches)
    used = sum(lengths[row] for rows in micro_batches for row in rows)
    return 1 - used / computed if computed else 0.0
