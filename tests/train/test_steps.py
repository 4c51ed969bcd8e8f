"""Optimiser steps hold every row once per epoch, within the budget, and are the same for the same seed."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.train.steps import evenness, merge_micro_batches, padding_share, plan_steps, share_steps

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 3), st.integers(2, 20), st.integers(1, 2000), st.integers(0, 5))
def test_each_epoch_holds_every_row_once(
    lengths: list[int], epochs: int, rows_per_step: int, budget: int, seed: int
) -> None:
    def plan() -> list[tuple[tuple[int, ...], ...]]:
        return plan_steps(
            [[row] for row in range(len(lengths))],
            lengths,
            epochs=epochs,
            rows_per_step=rows_per_step,
            tokens_per_micro_batch=budget,
            seed=seed,
        )

    steps = plan()
    assert steps == plan()
    rows = [row for step in steps for micro_batch in step for row in micro_batch]
    for epoch in range(epochs):
        assert sorted(rows[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    for step in steps:
        assert sum(map(len, step)) <= rows_per_step
        for micro_batch in step:
            assert len(micro_batch) == 1 or len(micro_batch) * max(lengths[r] for r in micro_batch) <= budget


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40))
def test_a_row_and_its_swapped_copy_share_a_step(lengths: list[int]) -> None:
    units = [[2 * i, 2 * i + 1] for i in range(len(lengths))]
    both = [length for length in lengths for _ in range(2)]
    steps = plan_steps(units, both, epochs=1, rows_per_step=4, tokens_per_micro_batch=100, seed=1)
    step_of = {row: number for number, step in enumerate(steps) for batch in step for row in batch}
    assert all(step_of[a] == step_of[b] for a, b in units)


def test_another_seed_gives_another_order() -> None:
    plans = [
        plan_steps(
            [[row] for row in range(50)],
            [7] * 50,
            epochs=1,
            rows_per_step=5,
            tokens_per_micro_batch=99,
            seed=s,
        )
        for s in (0, 1)
    ]
    assert plans[0] != plans[1]


def test_little_padding_on_arena_like_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(6.8, 0.6, 4000).clip(100, 3000).astype(int).tolist()
    steps = plan_steps(
        [[row] for row in range(len(lengths))],
        lengths,
        epochs=1,
        rows_per_step=64,
        tokens_per_micro_batch=8192,
        seed=0,
    )
    assert padding_share(list(chain.from_iterable(steps)), lengths) < 0.05


def test_a_token_limit_on_steps_holds() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 300).tolist()
    units = [[row] for row in range(len(lengths))]
    steps = plan_steps(
        units, lengths, epochs=1, rows_per_step=32, tokens_per_micro_batch=500, seed=0, tokens_per_step=200
    )
    rows = [row for step in steps for batch in step for row in batch]
    assert sorted(rows) == list(range(300))
    assert max(sum(lengths[row] for batch in step for row in batch) for step in steps) <= 200
    free = plan_steps(units, lengths, epochs=1, rows_per_step=32, tokens_per_micro_batch=500, seed=0)
    assert len(free) < len(steps)


@given(LENGTHS, st.integers(1, 6000))
def test_merged_micro_batches_hold_the_same_rows_within_the_limit(lengths: list[int], limit: int) -> None:
    units = [[row] for row in range(len(lengths))]
    for step in plan_steps(units, lengths, epochs=1, rows_per_step=9, tokens_per_micro_batch=500, seed=0):
        parts = merge_micro_batches(step, lengths, limit)
        assert list(chain.from_iterable(parts)) == list(chain.from_iterable(step))
        sizes = [sum(lengths[row] for row in part) for part in parts]
        assert all(size <= limit or part in step for part, size in zip(parts, sizes, strict=True))
        assert all(one + other > limit for one, other in pairwise(sizes)), "could be joined"


@given(LENGTHS, st.integers(2, 4), st.integers(2, 20), st.integers(1, 2000), st.booleans())
def test_ranks_share_the_units_of_every_step(
    lengths: list[int], ranks: int, rows_per_step: int, budget: int, pairs: bool
) -> None:
    lengths = [length for length in lengths for _ in range(1 + pairs)]
    units = [[row, row + 1] if pairs else [row] for row in range(0, len(lengths), 1 + pairs)]
    steps = plan_steps(
        units, lengths, epochs=1, rows_per_step=rows_per_step, tokens_per_micro_batch=budget, seed=0
    )
    if max(sum(map(len, step)) for step in steps) < ranks * (1 + pairs):
        with pytest.raises(UserError, match=f"{ranks} processes"):
            share_steps(steps, units, lengths, ranks=ranks, tokens_per_micro_batch=budget)
        return
    shares = share_steps(steps, units, lengths, ranks=ranks, tokens_per_micro_batch=budget)
    assert [len(share) for share in shares] == [len(steps)] * ranks
    for step, *parts in zip(steps, *shares, strict=True):
        own = [list(chain.from_iterable(part)) for part in parts]
        assert sorted(chain.from_iterable(own)) == sorted(chain.from_iterable(step))
        assert all((unit[0] in rows) == (unit[-1] in rows) for unit in units for rows in own)
        tokens = [sum(lengths[row] for row in rows) for rows in own]
        largest = max(sum(lengths[row] for row in unit) for unit in units)
        assert max(tokens) - min(tokens) <= largest
        batches = [batch for part in parts for batch in part]
        assert all(
            len(batch) * max(lengths[row] for row in batch) <= budget or len(batch) == 1 + pairs
            for batch in batches
        )
    assert 1 / ranks <= evenness(shares, lengths) <= 1


def test_shares_of_arena_like_rows_are_nearly_even() -> None:
    lengths = np.random.default_rng(0).lognormal(6.8, 0.6, 4000).clip(100, 3000).astype(int).tolist()
    units = [[row] for row in range(len(lengths))]
    steps = plan_steps(units, lengths, epochs=1, rows_per_step=64, tokens_per_micro_batch=2048, seed=0)
    shares = share_steps(steps, units, lengths, ranks=8, tokens_per_micro_batch=2048)
    assert evenness(shares, lengths) > 0.97


def test_one_process_computes_the_planned_micro_batches() -> None:
    steps = [((0, 1), (2,)), ((3,),)]
    assert share_steps(steps, [[0], [1], [2], [3]], [9, 9, 9, 9], ranks=1, tokens_per_micro_batch=9) == [
        steps
    ]
