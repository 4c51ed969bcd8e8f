"""Which rows are averaged in each optimiser step, and in which micro-batches they are computed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model.batch import MicroBatch, share_out, split_by_budget

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


def share_steps(
    steps: Sequence[Step],
    units: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    ranks: int,
    tokens_per_micro_batch: int,
) -> list[list[Step]]:
    """Divide the rows of every step over ranks, by numbers of tokens: the slowest rank decides its duration.

    Args:
        steps, units, lengths: as in :func:`plan_steps`; the rows of one unit stay together.
        ranks: number of shares.
        tokens_per_micro_batch: maximum rows × longest row in one forward pass.

    Returns:
        The steps of each rank, ``[ranks][steps]``. A share is empty in a step with fewer units than ranks.

    Raises:
        UserError: no step has a unit for each rank, so that some would never compute anything.
    """
    if ranks == 1:
        return [list(steps)]
    unit_of = {row: number for number, unit in enumerate(units) for row in unit}
    in_steps = [list(dict.fromkeys(unit_of[row] for part in step for row in part)) for step in steps]
    if (most := max(map(len, in_steps))) < ranks:
        raise UserError(
            f"{ranks} processes, but no optimiser step has more than {most} rows to divide over them "
            f"(train.rows_per_step, train.tokens_per_step; both orders of a row count as one).\n"
            f"  Start at most {most} processes, or raise train.rows_per_step."
        )
    shares: list[list[Step]] = [[] for _ in range(ranks)]
    for numbers in in_steps:
        costs = [sum(lengths[row] for row in units[number]) for number in numbers]
        for share, chosen in zip(shares, share_out(costs, ranks), strict=True):
            own = [units[numbers[i]] for i in chosen]
            own.sort(key=lambda unit: max(lengths[row] for row in unit))
            rows = sum(map(len, own))
            share.append(tuple(split_by_budget(own, lengths, tokens_per_micro_batch, rows_per_batch=rows)))
    return shares


def evenness(shares: Sequence[Sequence[Step]], lengths: Sequence[int]) -> float:
    """Mean tokens of a rank divided by those of the rank with most, summed over the steps; 1 if all are even.

    >>> evenness([[((0,),)], [((1,),)]], lengths=[4, 2])
    0.75
    """
    tokens = np.array([[sum(lengths[row] for part in s for row in part) for s in share] for share in shares])
    return float(tokens.mean(axis=0).sum() / tokens.max(axis=0).sum())


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
