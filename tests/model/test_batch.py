"""Batches hold every row once, in order, within the budget."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmsys_unsloth.model.batch import by_length, collate, target

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 2000))
def test_scoring_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = by_length(lengths, budget)
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


def test_collate_concatenates_rows() -> None:
    batch = collate([np.array([5, 6, 7]), np.array([8])], [target(1, None), target(None, (0.2, 0.3, 0.5))])
    assert batch.input_ids.tolist() == [5, 6, 7, 8] and batch.lengths == (3, 1)
    assert batch.targets.tolist() == [[0, 1, 0], [np.float32(0.2), np.float32(0.3), 0.5]]


def test_split_keeps_rows_and_order() -> None:
    batch = collate([np.arange(n) for n in (4, 9, 3, 3)], np.arange(12).reshape(4, 3).tolist())
    parts = batch.split(6)
    assert [part.lengths for part in parts] == [(4,), (9,), (3, 3)]
    assert torch.cat([part.input_ids for part in parts]).equal(batch.input_ids)
    assert torch.cat([part.targets for part in parts]).equal(batch.targets)
    assert batch.padded_tokens == 36
