"""Which rows are averaged in each optimiser step, and in which micro-batches they are computed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lmsys_unsloth.model.batch import MicroBatch, split_by_budget

Step = tuple[MicroBatch, ...]
"""Micro-batches of row indices whose gradients are averaged in one optimiser step."""

WINDOW_STEPS = 8
"""Number of optimiser steps whose rows are sorted by length together: similar lengths, near-random order."""

PLANNED_TOKENS = 2048
"""Maximum tokens in a micro-batch when ``train.tokens_per_micro_batch`` is ``auto``."""


def group_indices(sizes: Iterable[int]) -> list[list[int]]:
    """Number rows consecutively and group the numbers by ``sizes``.

    >>> group_indices([1, 2])
    [[0], [1, 2]]
    """
    numbers = itertools.count()
    return [[next(numbers) for _ in range(size)] for size in sizes]


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
    """Plan every optimiser step of a training; the same seed gives the same steps.

    Args:
        units: row indices that must be averaged in the same step (a row and its swapped copy, say).
        lengths: number of tokens of each row.
        epochs: number of passes over all rows.
        rows_per_step: maximum rows in a step; a larger unit is a step of its own.
        tokens_per_micro_batch: maximum rows × longest row in one forward pass.
        seed: of the order of rows and micro-batches.
        tokens_per_step: maximum tokens in a step, so that steps of long rows cost no more than others.

    Returns:
        Steps of micro-batches of row indices. Each epoch holds every row exactly once.
    """
    random = np.random.default_rng(seed)
    longest = [max(lengths[row] for row in unit) for unit in units]
    budget = min(tokens_per_micro_batch, tokens_per_step or tokens_per_micro_batch)
    window = WINDOW_STEPS * rows_per_step
    steps: list[Step] = []
    for _ in range(epochs):
        order = random.permutation(len(units))
        micro_batches: list[MicroBatch] = []
        for start in range(0, len(order), window):
            chosen = sorted(order[start : start + window].tolist(), key=longest.__getitem__)
            cut = list(split_by_budget([units[unit] for unit in chosen], lengths, budget, rows_per_step))
            micro_batches += [cut[i] for i in random.permutation(len(cut))]
        steps += _fill_steps(micro_batches, lengths, rows_per_step, tokens_per_step or sys.maxsize)
    return steps


def merge_micro_batches(step: Step, lengths: Sequence[int], tokens: int) -> Step:
    """Merge neighbouring micro-batches of packed rows up to ``tokens`` tokens each.

    >>> merge_micro_batches(((0,), (1, 2), (3,)), [5, 2, 2, 4], tokens=9)
    ((0, 1, 2), (3,))
    """
    merged: list[MicroBatch] = []
    for micro_batch in step:
        candidate = (*merged[-1], *micro_batch) if merged else ()
        if candidate and sum(lengths[row] for row in candidate) <= tokens:
            merged[-1] = candidate
        else:
            merged.append(micro_batch)
    return tuple(merged)


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
    """Fraction of positions that are padding when each batch is padded to its longest row, 0 to 1."""
    computed = sum(len(rows) * max(lengths[row] for row in rows) for rows in micro_batches)
    used = sum(lengths[row] for rows in micro_batches for row in rows)
    return 1 - used / computed if computed else 0.0
