"""Predictions are adjusted by other rows' labels, from raw ones, with a calibration that fits the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from factories import eval_config
from numpy.typing import NDArray

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.comparison import Comparison, label_array
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import fit_form
from lmsys_unsloth.evaluate import adjustment, baselines
from lmsys_unsloth.evaluate.calibration import apply_temperature, fit_temperature
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    RAW_COLUMNS,
    Predictions,
    read_predictions,
    unadjusted,
    with_columns,
    with_swap,
    write_predictions,
)

N, FOLDS = 150, 3
ROWS = simulate(N, 3, "short")
FEATURES = form_features(ROWS)
NEW = simulate(20, 4, "short")
CALIBRATE, STACK = eval_config(calibrate="temperature"), eval_config(stack=True)


def predictions(rows: list[Comparison] = ROWS, labels: NDArray[np.int64] | None = None) -> Predictions:
    """Overconfident predictions in three folds."""
    truth = np.array([row.true_probabilities for row in rows])
    noise = np.random.default_rng(0).dirichlet([1, 1, 1], len(rows))
    p = apply_temperature(0.5 * truth + 0.5 * noise, 0.3)
    known = np.array([row.label for row in rows])
    return Predictions(
        [row.id for row in rows], np.arange(len(rows)) % FOLDS, p.astype(np.float32),
        known if labels is None else labels,
    )  # fmt: skip


def test_the_labels_of_a_fold_do_not_change_its_own_adjusted_predictions() -> None:
    first = predictions()
    in_fold = first.folds == 0
    labels = np.where(in_fold, (first.labels + 1) % 3, first.labels)
    before = adjustment.adjust_out_of_fold(first, FEATURES)
    after = adjustment.adjust_out_of_fold(predictions(labels=labels), FEATURES)
    for config in (CALIBRATE, STACK):
        kept, _ = adjustment.choose(first, before, config)
        changed, _ = adjustment.choose(first, after, config)
        np.testing.assert_array_equal(kept.probabilities[in_fold], changed.probabilities[in_fold])
        assert np.abs(kept.probabilities - changed.probabilities)[~in_fold].max() > 1e-4


def test_rows_of_one_prompt_are_adjusted_together() -> None:
    one_fold = dataclasses.replace(predictions(), folds=np.zeros(N, np.int64))
    groups = [str(k // 5) for k in range(N)]
    grouped = dataclasses.replace(one_fold, extra={"group": groups})
    labels = np.where(np.arange(N) < 5, (grouped.labels + 1) % 3, grouped.labels)
    before = adjustment.adjust_out_of_fold(grouped, FEATURES)
    after = adjustment.adjust_out_of_fold(dataclasses.replace(grouped, labels=labels), FEATURES)
    np.testing.assert_array_equal(before["stack"][:5], after["stack"][:5])


def test_raw_probabilities_are_kept_and_restored(tmp_path: Path) -> None:
    raw = predictions()
    final, method = adjustment.choose(raw, adjustment.adjust_out_of_fold(raw, FEATURES), STACK)
    assert method == "stack" and np.abs(final.probabilities - raw.probabilities).max() > 0.01
    write_predictions(tmp_path / "p.parquet", final)
    stored = read_predictions(tmp_path / "p.parquet")
    assert set(RAW_COLUMNS) <= stored.extra.keys()
    np.testing.assert_array_equal(stored.probabilities, final.probabilities)
    np.testing.assert_array_equal(unadjusted(stored).probabilities, raw.probabilities)
    assert unadjusted(raw) is raw


def test_one_group_of_prompts_leaves_the_predictions_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    raw = dataclasses.replace(predictions(), folds=np.zeros(N, np.int64), extra={"group": ["x"] * N})
    candidates = adjustment.adjust_out_of_fold(raw, FEATURES)
    final, method = adjustment.choose(raw, candidates, CALIBRATE)
    assert (candidates, method) == ({}, "none") and final is raw
    assert "eval.calibrate=temperature has no effect" in caplog.text
    assert list(adjustment.compare(raw, candidates)) == ["raw"]


def test_every_method_is_compared_with_raw_predictions_and_with_the_regression() -> None:
    raw = predictions()
    baseline = baselines.predict_parts(FEATURES, label_array(ROWS), raw.folds, baselines.fit_baseline)
    raw = with_columns(raw, BASELINE_COLUMNS, baseline)
    scores = adjustment.compare(raw, adjustment.adjust_out_of_fold(raw, FEATURES))
    assert list(scores) == ["raw", "temperature", "stack"] and scores["raw"].against_raw is None
    pair = scores["temperature"].against_raw
    assert pair is not None and pair.difference_ci is not None
    assert pair.difference == pytest.approx(scores["temperature"].log_loss - scores["raw"].log_loss)
    assert pair.difference_ci[1] < 0  # the predictions are overconfident
    assert adjustment.compare(dataclasses.replace(raw, labels=np.full(N, -1)), {}) == {}


def make_run(path: Path, fold: int, method: str = "none") -> Run:
    """A run with predictions of its fold and their calibration, as train.py leaves it."""
    run, everything = Run(path), predictions()
    path.mkdir()
    inside = everything.folds == fold
    own, rows = everything.take(inside), [row for row, chosen in zip(ROWS, inside, strict=True) if chosen]
    train = [row for row, chosen in zip(ROWS, inside, strict=True) if not chosen]
    regression = fit_form(form_features(train), label_array(train))
    form = regression.predict_form(form_features(rows))
    raw = with_columns(own, FORM_COLUMNS, form)
    config = eval_config(calibrate=method)
    final, _ = adjustment.choose(raw, adjustment.adjust_out_of_fold(raw, form_features(rows), form), config)
    run.data.write_text(json.dumps({"fingerprint": "data"}))
    write_predictions(run.predictions, final)
    adjustment.save_calibration(run, adjustment.fit_calibration([raw], [regression]), raw, config)
    return run


def test_new_rows_get_the_temperature_of_all_out_of_fold_predictions(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{fold}", fold) for fold in range(FOLDS)]
    calibration = adjustment.load_calibration(runs, NEW, CALIBRATE)
    assert calibration is not None and calibration.rows == N and len(calibration.form) == FOLDS
    pooled = predictions()
    order = np.argsort(pooled.folds, kind="stable")
    expected = fit_temperature(pooled.probabilities.astype(np.float64)[order], pooled.labels[order])
    assert calibration.temperature == expected
    members = [
        dataclasses.replace(predictions(NEW), probabilities=np.tile(p, (20, 1)))
        for p in np.eye(3) * 0.4 + 0.2
    ]
    adjusted = adjustment.apply(calibration, members, form_features(NEW))
    np.testing.assert_allclose(
        adjusted["temperature"],
        np.mean([apply_temperature(m.probabilities, expected) for m in members], axis=0),
    )
    np.testing.assert_allclose(adjusted["stack"].sum(axis=1), 1)


@pytest.mark.parametrize("count", [1, FOLDS])
def test_calibrated_runs_are_not_calibrated_twice(tmp_path: Path, count: int) -> None:
    raw = [make_run(tmp_path / f"raw{fold}", fold) for fold in range(count)]
    calibrated = [make_run(tmp_path / f"calibrated{fold}", fold, "temperature") for fold in range(count)]
    stored = read_predictions(calibrated[0].predictions)
    assert RAW_COLUMNS[0] in stored.extra and FORM_COLUMNS[0] in stored.extra
    first, second = (adjustment.load_calibration(runs, NEW, CALIBRATE) for runs in (raw, calibrated))
    assert first is not None and second is not None and first.temperature == second.temperature


def test_labelled_rows_that_are_scored_are_not_used_to_fit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0", 0)
    own = [row for k, row in enumerate(ROWS) if k % FOLDS == 0]
    some = adjustment.load_calibration([run], own[:10], CALIBRATE)
    assert some is not None and some.rows == len(own) - 10
    assert adjustment.load_calibration([run], own, CALIBRATE) is None
    unlabelled = [dataclasses.replace(row, label=None) for row in own]
    everything = adjustment.load_calibration([run], unlabelled, CALIBRATE)
    assert everything is not None and everything.rows == len(own)


def test_a_calibration_fitted_on_other_rows_is_refused(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first", 0), make_run(tmp_path / "second", 1)
    second.calibration.write_text(first.calibration.read_text())
    with pytest.raises(
        UserError, match=r"(?s)calibration.json: fitted on other rows.*50 rows.*resume=.*second"
    ):
        adjustment.load_calibration([first, second], NEW, STACK)


def test_a_calibration_fitted_on_other_predictions_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    stored = read_predictions(run.predictions)
    write_predictions(
        run.predictions, dataclasses.replace(stored, probabilities=stored.probabilities[:, [1, 0, 2]])
    )
    with pytest.raises(UserError, match="fitted on other predictions of the same rows"):
        adjustment.load_calibration([run], NEW, STACK)


def test_a_missing_or_damaged_calibration_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    values = json.loads(run.calibration.read_text())
    del values["stack"]["intercept"]
    run.calibration.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"(?s)damaged or of another version.*train.py resume="):
        adjustment.load_calibration([run], NEW, STACK)
    run.calibration.unlink()
    with pytest.raises(UserError, match=r"(?s)calibration.json: missing.*train.py resume="):
        adjustment.load_calibration([run], NEW, STACK)


def test_a_calibration_of_another_version_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    run.calibration.write_text(json.dumps(json.loads(run.calibration.read_text()) | {"version": 1}))
    with pytest.raises(UserError, match=r"(?s)another version \(version 1, not 2\).*train.py resume="):
        adjustment.load_calibration([run], NEW, STACK)


def test_only_rows_seen_in_one_order_are_corrected_for_the_position(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{fold}", fold) for fold in range(FOLDS)]
    calibration = adjustment.load_calibration(runs, NEW, STACK)
    assert calibration is not None and calibration.stack.coefficients[0][-1] != 0
    once = predictions(NEW)
    both = with_swap(once, once.probabilities[:, [1, 0, 2]])  # the same prediction in both orders
    found = [
        adjustment.apply(calibration, members, form_features(NEW))["stack"]
        for members in ([once], [both], [once, both])
    ]
    first, neither, mean = (np.log(p[:, 0] / p[:, 1]) for p in found)
    assert np.abs(first - neither).max() > 1e-5
    np.testing.assert_allclose(mean, (first + neither) / 2, atol=1e-9)


def test_predictions_of_trained_rows_calibrate_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    run.metrics.write_text(json.dumps({"trained_rows": {"left_out": 0, "scored": 7}}))
    with pytest.raises(UserError, match="rows that it was trained on"):
        adjustment.load_calibration([run], NEW, CALIBRATE)


def test_another_order_of_responses_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "run", 0)
    adjustment.load_calibration([run], NEW, eval_config(calibrate="temperature", swap="none"))
    assert "eval.swap=none" in caplog.text and "eval.swap=average" in caplog.text


def test_rows_without_labels_have_nothing_to_fit_on() -> None:
    unlabelled = [dataclasses.replace(row, label=None) for row in NEW]
    with pytest.raises(UserError, match=r"(?s)eval.stack=true.*none of the 20 rows.*run=RUN"):
        adjustment.require_labels(STACK, unlabelled)
    adjustment.require_labels(STACK, NEW)
    adjustment.require_labels(eval_config(), unlabelled)


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    broken = dataclasses.replace(predictions(), probabilities=np.full((N, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="are not finite"):
        adjustment.adjust_out_of_fold(broken, FEATURES)
