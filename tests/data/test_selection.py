"""Trained runs are scored on rows that they were not trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from factories import config
from preferences import record, write_csv

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.dataset import load_fold, load_rows
from lmsys_unsloth.data.selection import NO_FOLD, Overlap, select_for_trained, select_for_untrained
from lmsys_unsloth.data.trained_rows import save_trained_rows
from lmsys_unsloth.simulate import main

SETTINGS = ("data.rows=30", "data.folds=3")
ROWS = simulate(30, 0, "short")
NEW = simulate(5, 1, "short")


def trained_run(path: Path, fold: int = 0, *overrides: str) -> Run:
    """A run directory with the files that say what was trained on."""
    run = Run(path)
    save_trained_rows(run.training_rows, load_fold(config(*SETTINGS, *overrides).data, fold, run).train)
    return run


def select(tmp_path: Path, rows: Any, *overrides: str, runs: Any = None) -> Any:
    runs = [trained_run(tmp_path / "RUN")] if runs is None else runs
    return select_for_trained(config(*SETTINGS, *overrides), runs, rows, Run(tmp_path / "eval"))


def test_of_its_own_data_a_run_is_scored_on_its_validation_fold(tmp_path: Path) -> None:
    selection = select(tmp_path, ROWS)
    expected = load_fold(config(*SETTINGS).data, 0)
    assert list(selection.rows) == expected.validation and selection.train == expected.train
    assert selection.overlap == Overlap(left_out=len(expected.train), scored=0)
    assert set(selection.folds) == {0} and selection.groups is not None


def test_a_copy_of_the_file_under_another_name_is_the_run_s_own_data(tmp_path: Path) -> None:
    path = tmp_path / "copy.csv"
    assert main(["rows=30", "length=short", f"out={path}"]) == 0
    settings = ("data=lmsys", f"data.path={path}")
    rows = load_rows(config(*SETTINGS, *settings).data)
    selection = select(tmp_path, rows, *settings)
    assert [row.id for row in selection.rows] == [row.id for row in select(tmp_path, ROWS).rows]
    assert set(selection.folds) == {0}


def test_extra_rows_that_a_run_was_trained_on_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "extra.csv"
    assert main(["rows=5", "length=short", "seed=1", f"out={path}"]) == 0
    run = trained_run(tmp_path / "RUN", 0, f"data.extra=[{path}]")
    unseen = simulate(3, 2, "short")
    renamed = [dataclasses.replace(row, id=f"x{n}") for n, row in enumerate(NEW)]
    selection = select(tmp_path, [*renamed, *unseen], runs=[run])
    assert list(selection.rows) == unseen and selection.overlap == Overlap(left_out=5, scored=0)


def test_of_another_file_trained_rows_are_left_out(tmp_path: Path) -> None:
    renamed = [dataclasses.replace(row, id=f"x{n}") for n, row in enumerate(ROWS)]
    selection = select(tmp_path, [*renamed, *NEW])
    trained = len(load_fold(config(*SETTINGS).data, 0).train)
    assert len(selection.rows) == 35 - trained and list(selection.rows[-5:]) == NEW
    assert selection.overlap == Overlap(left_out=trained, scored=0) and set(selection.folds) == {NO_FOLD}


def test_unlabelled_rows_are_kept(tmp_path: Path) -> None:
    unlabelled = [dataclasses.replace(row, label=None) for row in ROWS]
    selection = select(tmp_path, unlabelled)
    assert list(selection.rows) == unlabelled and selection.overlap == Overlap(0, 0)


def test_nothing_left_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)nothing to score, \d+ of 30 rows.*eval.trained_rows=include"):
        select(tmp_path, ROWS, "fold=1")


def test_included_rows_are_counted(tmp_path: Path) -> None:
    selection = select(tmp_path, ROWS, "eval.trained_rows=include")
    assert len(selection.rows) == 30
    assert selection.overlap == Overlap(0, len(load_fold(config(*SETTINGS).data, 0).train))


def test_a_run_that_does_not_say_what_it_was_trained_on(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "RUN")
    run.training_rows.unlink()
    with pytest.raises(UserError, match="can't be recognised"):
        select(tmp_path, ROWS, runs=[run])
    selection = select(tmp_path, ROWS, "eval.trained_rows=include", runs=[run])
    assert len(selection.rows) == 30 and selection.overlap == Overlap(0, None)


def test_rows_that_any_of_several_runs_was_trained_on_are_left_out(tmp_path: Path) -> None:
    runs = [trained_run(tmp_path / f"RUN{fold}", fold) for fold in (0, 1)]
    assert list(select(tmp_path, [*ROWS, *NEW], runs=runs).rows) == NEW


def test_an_untrained_model_is_scored_on_a_fold_or_an_unlabelled_file(tmp_path: Path) -> None:
    fold = select_for_untrained(config(*SETTINGS, "fold=2"), Run(tmp_path / "1"))
    assert set(fold.folds) == {2} and fold.overlap is None
    winners = ("winner_model_a", "winner_model_b", "winner_tie")
    lines = [{k: v for k, v in record(str(n)).items() if k not in winners} for n in range(3)]
    path = write_csv(tmp_path / "test.csv", lines)
    whole = select_for_untrained(config(*SETTINGS, f"data.path={path}", "data=lmsys"), Run(tmp_path / "2"))
    assert len(whole.rows) == 3 and set(whole.folds) == {NO_FOLD}
