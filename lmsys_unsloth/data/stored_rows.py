"""Rows of a memory-mapped table, and what selects and swaps rows, wherever they are."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from lmsys_unsloth.data.comparison import Comparison

BATCH = 1000
"""Number of rows that are made at once when many are read one after the other."""

_TURNS, _PROBABILITIES = pa.list_(pa.large_string()), pa.list_(pa.float64())
COLUMNS = pa.schema(
    {
        "id": pa.string(),
        "prompts": _TURNS,
        "responses_a": _TURNS,
        "responses_b": _TURNS,
        "label": pa.int8(),
        "soft_label": _PROBABILITIES,
        "true_probabilities": _PROBABILITIES,
        "model_a": pa.string(),
        "model_b": pa.string(),
        "extra": pa.string(),
        "both_bad": pa.bool_(),
    }
)
"""Fields of :class:`Comparison`; ``extra`` is JSON."""


class StoredRows(Sequence[Comparison]):
    """Rows of a table, in any order and swapped or not; each is made when it is asked for.

    Args:
        batches: the table's parts, with :data:`COLUMNS`.
        positions: ``[rows]`` which row of the table each row is.
        swapped: ``[rows]`` whether its responses are swapped.
    """

    def __init__(
        self, batches: Sequence[pa.RecordBatch], positions: NDArray[np.int64], swapped: NDArray[np.bool_]
    ) -> None:
        self._batches, self._positions, self._swapped = batches, positions, swapped
        self._starts = np.cumsum([0, *map(len, batches)])

    @classmethod
    def of_table(cls, table: pa.Table) -> StoredRows:
        """All rows of a table."""
        return cls(table.to_batches(), np.arange(len(table)), np.zeros(len(table), dtype=np.bool_))

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Comparison: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...
    def __getitem__(self, index: int | slice) -> Comparison | StoredRows:
        if isinstance(index, slice):
            return StoredRows(self._batches, self._positions[index], self._swapped[index])
        number = range(len(self))[index]  # IndexError beyond the end
        return next(self._made(slice(number, number + 1)))

    def __iter__(self) -> Iterator[Comparison]:
        for start in range(0, len(self), BATCH):
            yield from self._made(slice(start, start + BATCH))

    def select(self, positions: NDArray[np.int64], swapped: NDArray[np.bool_]) -> StoredRows:
        """The rows at ``positions``, swapped (again) where ``swapped`` says so."""
        return StoredRows(self._batches, self._positions[positions], self._swapped[positions] ^ swapped)

    def _made(self, numbers: slice) -> Iterator[Comparison]:
        positions = self._positions[numbers]
        parts = np.searchsorted(self._starts, positions, side="right") - 1
        changes = np.flatnonzero(np.diff(parts)) + 1
        swapped = iter(self._swapped[numbers].tolist())
        for part, run in zip(parts[np.r_[0, changes]], np.split(positions, changes), strict=True):
            for cells in self._batches[part].take(pa.array(run - self._starts[part])).to_pylist():
                row = _row(cells)
                yield row.swapped() if next(swapped) else row


def to_batch(rows: Sequence[Comparison]) -> pa.RecordBatch:
    """Rows as a part of a table with :data:`COLUMNS`."""
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in COLUMNS.names}
    columns["extra"] = [json.dumps(dict(extra)) for extra in columns["extra"]]
    return pa.record_batch(columns, COLUMNS)


def _row(cells: dict[str, Any]) -> Comparison:
    return Comparison(
        id=cells["id"],
        prompts=tuple(cells["prompts"]),
        responses_a=tuple(cells["responses_a"]),
        responses_b=tuple(cells["responses_b"]),
        label=cells["label"],
        soft_label=cells["soft_label"] and tuple(cells["soft_label"]),
        true_probabilities=cells["true_probabilities"] and tuple(cells["true_probabilities"]),
        model_a=cells["model_a"],
        model_b=cells["model_b"],
        extra=json.loads(cells["extra"]),
        both_bad=cells["both_bad"],
    )


def select(
    rows: Sequence[Comparison], chosen: ArrayLike, swapped: NDArray[np.bool_] | None = None
) -> Sequence[Comparison]:
    """Choose rows by a mask or by positions; those of a table stay there, others are in a list.

    Args:
        rows: the rows.
        chosen: mask ``[rows]``, or positions ``[chosen]``.
        swapped: ``[chosen]`` whether to swap the responses of each.
    """
    positions = np.arange(len(rows))[np.asarray(chosen)]
    exchange = np.zeros(len(positions), dtype=np.bool_) if swapped is None else swapped
    if isinstance(rows, StoredRows):
        return rows.select(positions, exchange)
    return [
        rows[position].swapped() if swap else rows[position]
        for position, swap in zip(positions.tolist(), exchange.tolist(), strict=True)
    ]


ROWS_PER_UNIT = {"none": 1, "random": 1, "both": 2}
"""Number of neighbouring rows from :func:`swap_rows` that must share an optimiser step."""


def swap_rows(
    rows: Sequence[Comparison], mode: Literal["none", "random", "both"], seed: int
) -> Sequence[Comparison]:
    """Swap responses in training rows.

    ``none`` leaves rows unchanged. ``random`` swaps about half of them: which ones depends on ``seed``
    and the row's id only, so every epoch and every fold sees the same orientation. ``both``
    returns each row with its swapped copy: the pair's mean gradient has no preference for a position.

    >>> row = Comparison("7", ("Hi",), ("Hello!",), ("Yo",), label=0)
    >>> [each.label for each in swap_rows([row], "both", seed=0)]
    [0, 1]
    """
    everything = np.arange(len(rows))
    if mode == "none":
        return select(rows, everything)
    if mode == "both":
        return select(rows, np.repeat(everything, 2), np.tile([False, True], len(rows)))
    chosen = [random.Random(f"{seed}/{row.id}").random() < 0.5 for row in rows]
    return select(rows, everything, np.array(chosen, dtype=np.bool_))
