"""The public predictor gives what ``eval.py`` gives for the same rows, in every form they may have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_runs import FOLDS, member

from lmsys_unsloth import Predictor
from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.evaluate.predictions import read_predictions

pytestmark = pytest.mark.slow

BATCHES = 1e-5
"""Rows of other batches are summed in another order; probabilities are float32 numbers below 1."""


def given(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {"prompt": row.prompts, "response_a": row.responses_a, "response_b": row.responses_b} for row in rows
    ]


def test_a_run_predicts_what_eval_predicts(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    scored = member(folder, "fold0", f"data.path={new_rows}")
    evaluation.evaluate_run(scored, Run(tmp_path / "eval"))
    predictor = Predictor.load(folder / "fold0")
    found = predictor.predict(given(load_rows(scored.config.data)))
    assert found.dtype == np.float32 and found.shape == (6, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    expected = read_predictions(Run(tmp_path / "eval").predictions).probabilities
    np.testing.assert_allclose(found, expected, atol=BATCHES)
    assert predictor.predict([]).shape == (0, 3)


@pytest.mark.parametrize("change", ["eval.stack=true", "eval.swap=average"])
def test_several_runs_and_their_cross_validation_are_averaged_and_adjusted_as_by_eval(
    folder: Path, tmp_path: Path, new_rows: Path, change: str
) -> None:
    names = [f"fold{fold}" for fold in range(FOLDS)]
    members = [member(folder, name, f"data.path={new_rows}", change) for name in names]
    evaluation.evaluate_runs(members, Run(tmp_path / "new"))
    expected = read_predictions(Run(tmp_path / "new").predictions).probabilities
    rows = given(load_rows(members[0].config.data))
    of_runs = Predictor.load([folder / name for name in names], change).predict(rows)
    np.testing.assert_allclose(of_runs, expected, atol=BATCHES)
    merged = [member(folder, name, change) for name in names]
    evaluation.evaluate_runs(merged, Run(tmp_path / "cv"))
    Run(tmp_path / "cv").describe(merged[0].config, "python eval.py")
    np.testing.assert_array_equal(Predictor.load(tmp_path / "cv").predict(rows), of_runs)


def test_threads_that_share_a_predictor_get_the_results_of_one(folder: Path, new_rows: Path) -> None:
    predictor = Predictor.load([folder / "fold0", folder / "fold1"])
    rows = given(load_rows(member(folder, "fold0", f"data.path={new_rows}").config.data))
    alone = [predictor.predict([row]) for row in rows]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda row: predictor.predict([row]), rows))
    np.testing.assert_array_equal(together, alone)


def test_ranking_and_benchmarks_follow_the_predictions(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(folder / "fold0")
    ranking = predictor.rank("2 + 2?", ["4", "5", "I don't know."])
    assert ranking.comparisons == 3 and sorted(ranking.order) == [0, 1, 2]
    # (a + b) odd: a is shown first, so the pair (0, 2) is shown as (2, 0)
    shown = [("4", "5"), ("I don't know.", "4"), ("5", "I don't know.")]
    q = predictor.predict({"prompt": "2 + 2?", "response_a": a, "response_b": b} for a, b in shown)
    points = q[:, 0] + q[:, 2] / 2
    by_hand = [points[0] + 1 - points[1], 1 - points[0] + points[2], points[1] + 1 - points[2]]
    np.testing.assert_allclose(ranking.scores, np.array(by_hand) / 2, atol=BATCHES)


def test_what_is_no_run_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        Predictor.load(tmp_path / "missing")
    with pytest.raises(UserError, match="no run is named"):
        Predictor.load([])
    unfinished = Run(tmp_path / "unfinished")
    unfinished.describe(member(folder).config, "python train.py")
    with pytest.raises(UserError, match=r"neither a trained run .* nor a cross-validation"):
        Predictor.load(unfinished.path)


def test_importing_the_package_imports_no_framework() -> None:
    code = "import lmsys_unsloth, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
