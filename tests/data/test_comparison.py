"""Swapping and fingerprints."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.stored_rows import swap_rows

ROW = Comparison(
    "7",
    ("Hi", "Bye"),
    ("Hello!", "Bye!"),
    ("Yo", "Later"),
    0,
    (0.5, 0.3, 0.2),
    (0.6, 0.3, 0.1),
    "alpha",
    "beta",
)


def test_swapping_exchanges_everything_together() -> None:
    assert ROW.swapped() == Comparison(
        "7",
        ("Hi", "Bye"),
        ("Yo", "Later"),
        ("Hello!", "Bye!"),
        1,
        (0.3, 0.5, 0.2),
        (0.3, 0.6, 0.1),
        "beta",
        "alpha",
    )
    assert ROW.swapped().swapped() == ROW
    assert dataclasses.replace(ROW, label=2).swapped().label == 2
    assert dataclasses.replace(ROW, label=None, soft_label=None).swapped().label is None
    assert dataclasses.replace(ROW, label=2, both_bad=True).swapped().both_bad


def _rows(count: int) -> list[Comparison]:
    return [dataclasses.replace(ROW, id=str(n)) for n in range(count)]


def test_no_swap() -> None:
    assert swap_rows(_rows(3), "none", seed=0) == _rows(3)


def test_random_swap_depends_on_seed_and_row_only() -> None:
    rows = _rows(1000)
    swapped = {row.id: row.label == 1 for row in swap_rows(rows, "random", seed=0)}
    assert 430 < sum(swapped.values()) < 570
    part = swap_rows(rows[::-7], "random", seed=0)
    assert {row.id: row.label == 1 for row in part}.items() <= swapped.items()
    assert swap_rows(rows, "random", seed=1) != swap_rows(rows, "random", seed=0)


def test_both_ways_in_one_unit() -> None:
    rows = swap_rows(_rows(3), "both", seed=0)
    assert rows[::2] == _rows(3)
    assert rows[1::2] == [row.swapped() for row in _rows(3)]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "8"},
        {"label": 1},
        {"label": None},
        {"prompts": ("HiB", "ye")},
        {"responses_a": ("Hello!", ""), "responses_b": ("Bye!Yo", "Later")},
        {"soft_label": None},
        {"soft_label": (0.5, 0.3, 0.2000001)},
        {"true_probabilities": None},
        {"model_a": None},
        {"both_bad": True},
    ],
)
def test_the_fingerprint_sees_every_change(change: dict[str, Any]) -> None:
    assert rows_fingerprint([dataclasses.replace(ROW, **change)]) != rows_fingerprint([ROW])


def test_the_fingerprint_sees_order_and_not_what_is_kept_aside() -> None:
    other = dataclasses.replace(ROW, id="8")
    assert rows_fingerprint([ROW, other]) != rows_fingerprint([other, ROW])
    assert rows_fingerprint([dataclasses.replace(ROW, extra={"language": "Dutch"})]) == rows_fingerprint(
        [ROW]
    )
    assert rows_fingerprint([]) == rows_fingerprint(iter(()))


def test_rows_keep_the_fingerprint_that_earlier_versions_stored() -> None:
    assert rows_fingerprint([ROW]).startswith("c7cda185e1b5d9b5")
