"""Rows in a memory-mapped table are the rows that were stored, whatever is selected and swapped."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lmsys_unsloth.data import stored_rows
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.stored_rows import StoredRows, select, swap_rows, to_batch

ROWS = [
    *simulate(20, 0, "short"),
    Comparison("x", ("", "b"), ("字", "c"), ("d", "e"), None, extra={"n": 1, "s": "t"}),
    Comparison("y", ("a",), ("b",), ("c",), 2, (0.1, 0.2, 0.7), model_a="m", both_bad=True),
]


@pytest.fixture(params=[1, 7, 1000])
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StoredRows:
    """The rows in a table of parts of 1, 7 or all rows, read 4 at a time."""
    monkeypatch.setattr(stored_rows, "BATCH", 4)
    size = request.param
    parts = [to_batch(ROWS[start : start + size]) for start in range(0, len(ROWS), size)]
    return StoredRows.of_table(pa.Table.from_batches(parts))


def test_stored_rows_equal_those_that_were_stored(stored: StoredRows) -> None:
    assert list(stored) == ROWS and [stored[i] for i in range(len(ROWS))] == ROWS
    assert [row.extra for row in stored] == [row.extra for row in ROWS]
    assert stored[-1] == ROWS[-1] and list(stored[3:9:2]) == ROWS[3:9:2]
    assert rows_fingerprint(stored) == rows_fingerprint(ROWS)
    with pytest.raises(IndexError):
        stored[len(ROWS)]


def test_selections_of_selections_equal_those_of_a_list(stored: StoredRows) -> None:
    random = np.random.default_rng(0)
    mask = random.random(len(ROWS)) < 0.7
    order = random.permutation(int(mask.sum()))
    swapped = random.random(len(order)) < 0.5
    for step in (False, True):
        lazy, plain = (select(select(rows, mask), order, swapped) for rows in (stored, ROWS))
        if step:
            lazy, plain = (select(rows, np.arange(len(order)), swapped) for rows in (lazy, plain))
        assert isinstance(lazy, StoredRows) and list(lazy) == plain


@pytest.mark.parametrize("mode", ["none", "random", "both"])
def test_stored_rows_are_swapped_like_a_list(stored: StoredRows, mode: str) -> None:
    assert list(swap_rows(stored, mode, seed=3)) == swap_rows(ROWS, mode, seed=3)  # type: ignore[arg-type]


def test_no_rows() -> None:
    empty = StoredRows.of_table(pa.Table.from_batches([to_batch(ROWS[:2])]))[:0]
    assert len(empty) == 0 and not list(empty) and not list(swap_rows(empty, "both", seed=0))
