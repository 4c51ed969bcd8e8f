"""Folds are grouped, stratified, seeded and can be reused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from preferences import labelled

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.folds import (
    SESSION,
    balance,
    folds_fingerprint,
    grouping_columns,
    load_folds,
    make_folds,
    save_folds,
)


def _rows(count: int, seed: int = 0) -> tuple[list[Comparison], np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, count // 2, count)
    labels = rng.choice(3, count, p=[0.35, 0.34, 0.31])
    return [labelled(f"r{n}", f"prompt {groups[n]}", int(labels[n])) for n in range(count)], groups


def test_groups_stay_together_and_labels_are_spread() -> None:
    rows, groups = _rows(1000)
    made = make_folds(rows, groups, 5, seed=0)
    assert len({(group, fold) for group, fold in zip(groups, made.of_row, strict=True)}) == len(set(groups))
    labels = np.array([row.label for row in rows])
    for fold in range(5):
        inside = made.of_row == fold
        assert 180 < inside.sum() < 220
        assert np.abs(np.bincount(labels[inside]) / inside.sum() - np.bincount(labels) / 1000).max() < 0.03


def test_sessions_are_grouped_by_where_the_file_has_them() -> None:
    rows, _ = _rows(4)
    with_session = [dataclasses.replace(row, extra={SESSION: "s", "judge": "x"}) for row in rows]
    assert grouping_columns(rows, []) == []
    assert grouping_columns(with_session, ["judge"]) == ["judge", SESSION]
    assert grouping_columns(with_session, [SESSION]) == [SESSION]


def test_the_seed_decides() -> None:
    rows, groups = _rows(300)
    same = [make_folds(rows, groups, 5, seed=seed).of_row.tolist() for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_too_few_prompts() -> None:
    rows, _ = _rows(20)
    with pytest.raises(
        UserError, match=re.escape("data.folds = 5: the 20 rows form only 4 groups by prompt")
    ):
        make_folds(rows, np.arange(20) % 4, 5, seed=0)
    assert set(make_folds(rows, np.arange(20) % 5, 5, seed=0).of_row.tolist()) == set(range(5))


def test_too_few_rows_of_every_outcome() -> None:
    rows = [labelled(str(n), f"prompt {n}", n % 3) for n in range(9)]
    with pytest.raises(UserError, match=r"the most frequent has 3\), .* lower data\.folds \(2 to 3\)"):
        make_folds(rows, np.arange(9), 5, seed=0)
    assert set(make_folds(rows, np.arange(9), 3, seed=0).of_row.tolist()) == {0, 1, 2}


def test_a_rare_outcome_is_no_trouble() -> None:
    rows = [labelled(str(n), f"prompt {n}", 2 if n == 0 else n % 2) for n in range(20)]
    assert set(make_folds(rows, np.arange(20), 5, seed=0).of_row.tolist()) == set(range(5))


def test_saved_folds_come_back_for_rows_in_any_order(tmp_path: Path) -> None:
    rows, groups = _rows(50)
    made = make_folds(rows, groups, 5, seed=0)
    path = tmp_path / "folds.csv"
    save_folds(path, rows, made)
    assert path.read_text().splitlines()[0] == "id,fold,group"
    order = np.random.default_rng(1).permutation(50)
    again = load_folds(path, [rows[i] for i in order], groups[order], 5)
    assert again.of_row.tolist() == made.of_row[order].tolist()
    assert folds_fingerprint([rows[i] for i in order], again.of_row) == folds_fingerprint(rows, made.of_row)
    assert folds_fingerprint(rows, (made.of_row + 1) % 5) != folds_fingerprint(rows, made.of_row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; give the folds.csv of an earlier run"),
        ("name,fold\nr0,0\n", "needs the columns id and fold"),
        ("id,fold\nr0,zero\n", "needs the columns id and fold"),
        ("id,fold\nr0,0\n", "2 of 3 rows have no fold there (ids r1, r2)"),
        ("id,fold\nr0,0\nr1,5\nr2,7\n", "has folds [5, 7], but data.folds = 5"),
    ],
)
def test_saved_folds_that_do_not_fit(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "folds.csv"
    if content is not None:
        path.write_text(content)
    rows, groups = _rows(3)
    with pytest.raises(UserError, match=re.escape(message)):
        load_folds(path, rows, groups, 5)


def test_balance() -> None:
    rows = [labelled(str(label), "x", label) for label in (0, 0, 2)]
    assert balance(rows) == {"a": 2, "b": 0, "tie": 1}
    assert balance([*rows, Comparison("4", ("x",), ("y",), ("z",))])["unlabelled"] == 1
