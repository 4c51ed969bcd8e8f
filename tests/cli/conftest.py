"""Fixtures of the tests of ``eval.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.simulate import main as simulate


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, ``train.csv`` with 30 rows, and one trained run for each of three folds."""
    from tiny import save_tiny_llama  # slow imports, which the fast tests of this folder do not need
    from trained_runs import FOLDS, ROWS, settings, train

    path = tmp_path_factory.mktemp("evaluation")
    save_tiny_llama(path / "model")
    assert simulate([f"rows={ROWS}", "length=short", f"out={path / 'train.csv'}"]) == 0
    for fold in range(FOLDS):
        train(settings(path, f"fold={fold}"), Run(path / f"fold{fold}"))
    return path


@pytest.fixture
def new_rows(tmp_path: Path) -> Path:
    """A file of six rows that no run has seen."""
    assert simulate(["rows=6", "seed=3", "length=short", f"out={tmp_path / 'new.csv'}"]) == 0
    return tmp_path / "new.csv"
