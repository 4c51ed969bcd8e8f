"""Calibrated and stacked predictions, from the command to ``submission.csv``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trained_runs import FOLDS, ROWS, member, read, settings, stored_metrics, write

from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.calibration import apply_temperature
from lmsys_unsloth.evaluate.predictions import read_predictions, unadjusted

pytestmark = pytest.mark.slow


def test_folds_predict_new_rows_calibrated_and_stacked(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    winners = ("winner_model_a", "winner_model_b", "winner_tie")
    unlabelled = [{k: v for k, v in line.items() if k not in winners} for line in read(new_rows)]
    test = write(tmp_path / "test.csv", unlabelled)
    found = {}
    for setting in ("eval.stack=false", "eval.calibrate=temperature", "eval.stack=true"):
        members = [member(folder, f"fold{fold}", f"data.path={test}", setting) for fold in range(FOLDS)]
        output = Run(tmp_path / setting)
        evaluation.evaluate_runs(members, output)
        lines = read(output.submission)
        assert [line["id"] for line in lines] == [line["id"] for line in unlabelled]
        found[setting] = np.array([[float(line[name]) for name in winners] for line in lines])
        np.testing.assert_allclose(found[setting].sum(axis=1), 1, atol=1e-6)
    raw, calibrated, stacked = found.values()
    assert np.abs(raw - calibrated).max() > 1e-4 and np.abs(calibrated - stacked).max() > 1e-4
    stored = read_predictions(Run(tmp_path / "eval.stack=true").predictions)
    np.testing.assert_allclose(unadjusted(stored).probabilities, raw, atol=1e-6)
    assert "predictions only (stacked)" in Run(tmp_path / "eval.stack=true").report.read_text()


def test_merged_folds_are_stacked_from_raw_predictions(folder: Path, tmp_path: Path) -> None:
    for setting in ("eval.stack=false", "eval.stack=true"):
        members = [member(folder, f"fold{fold}", setting) for fold in range(FOLDS)]
        evaluation.evaluate_runs(members, Run(tmp_path / setting))
    plain, stacked = (Run(tmp_path / f"eval.stack={value}") for value in ("false", "true"))
    raw, final = read_predictions(plain.predictions), read_predictions(stacked.predictions)
    np.testing.assert_array_equal(unadjusted(final).probabilities, raw.probabilities)
    first, second = stored_metrics(plain), stored_metrics(stacked)
    assert (first["adjustment"], second["adjustment"]) == ("none", "stack")
    assert first["adjusted"] == second["adjusted"] and second["n"] == ROWS
    assert first["log_loss"] == first["adjusted"]["raw"]["log_loss"]
    assert second["log_loss"] == pytest.approx(second["adjusted"]["stack"]["log_loss"], abs=1e-6)
    assert first["temperature"] == second["temperature"]
    assert json.loads(stacked.calibration.read_text())["rows"] == ROWS
    assert "difference from raw" in plain.report.read_text()


def test_a_run_is_calibrated_out_of_fold_on_its_own_rows_and_by_them_on_new_ones(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    setting, trained = "eval.calibrate=temperature", Run(folder / "fold0")
    evaluation.evaluate_run(member(folder, "fold0", setting), Run(tmp_path / "own"))
    own = stored_metrics(Run(tmp_path / "own"))
    assert own["log_loss"] == pytest.approx(own["log_loss_after_temperature"], abs=1e-6)
    evaluation.evaluate_run(member(folder, "fold0", setting, f"data.path={new_rows}"), Run(tmp_path / "new"))
    new = read_predictions(Run(tmp_path / "new").predictions)
    temperature = json.loads(trained.calibration.read_text())["temperature"]
    np.testing.assert_allclose(
        new.probabilities,
        apply_temperature(unadjusted(new).probabilities.astype(np.float64), temperature),
        atol=1e-6,
    )
    assert not Run(tmp_path / "new").calibration.exists()


def test_an_untrained_model_is_not_calibrated_without_labels(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    lines = [{k: v for k, v in line.items() if not k.startswith("winner")} for line in read(new_rows)]
    test = write(tmp_path / "test.csv", lines)
    with pytest.raises(UserError, match=r"(?s)eval.calibrate=temperature.*none of the 6 rows"):
        evaluation.evaluate_untrained(
            settings(folder, f"data.path={test}", "eval.calibrate=temperature"), Run(tmp_path / "eval")
        )
