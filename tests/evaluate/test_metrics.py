"""Metrics equal scikit-learn's, values computed by hand, and the known truth of simulated rows."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from factories import REPOSITORY
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.selection import Overlap
from lmsys_unsloth.evaluate import adjustment, calibration, metrics
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    with_columns,
    with_swap,
)
from lmsys_unsloth.evaluate.scores import Metrics, ModelScore, ScoringSpeed, SwapConsistency, WeightAverage


def random_case(n: int, seed: int = 0, sharpness: float = 1.0):
    """True probabilities, and labels drawn from them."""
    random = np.random.default_rng(seed)
    truth = random.dirichlet([sharpness] * 3, n)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return truth, labels


def test_hand_computed_values():
    p = np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1]])
    got = metrics.compute_metrics(p, np.array([0, 1, 2]), train_prior=[0.5, 0.25, 0.25]).score
    assert got.log_loss == pytest.approx(-(math.log(0.5) + math.log(0.6) + math.log(0.1)) / 3, abs=1e-12)
    assert got.accuracy == pytest.approx(2 / 3)
    assert got.brier == pytest.approx((0.375 + 0.24 + (0.01 + 0.64 + 0.81)) / 3)
    assert got.baselines.uniform == pytest.approx(math.log(3))
    assert got.baselines.class_prior == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert got.class_counts == {"a": 1, "b": 1, "tie": 1}
    assert got.predicted_counts == {"a": 1, "b": 2, "tie": 0}
    assert got.n == 3
    assert got.leaderboard_estimate == pytest.approx(0.890 * got.log_loss + 0.125)


def test_equal_to_scikit_learn():
    labels = random_case(500, seed=1)[1]
    p = np.random.default_rng(2).dirichlet([2, 2, 2], 500)
    got = metrics.compute_metrics(p, labels).score
    assert got.log_loss == pytest.approx(log_loss(labels, p, labels=[0, 1, 2]), abs=1e-12)
    assert got.accuracy == accuracy_score(labels, p.argmax(1))
    assert got.brier == pytest.approx(brier_score_loss(labels, p, labels=[0, 1, 2], scale_by_half=False))


def test_float32_probabilities_are_scored_as_given_and_zero_is_clipped_at_float_precision():
    p = np.array([[1.0, 0.0, 0.0], [1e-10, 1 - 1e-10, 0.0]], dtype=np.float32)
    losses = calibration.log_losses(metrics.checked_probabilities(p), np.array([1, 0]))
    assert losses[0] == pytest.approx(-math.log(np.finfo(np.float64).eps))
    assert losses[1] == pytest.approx(-math.log(1e-10), abs=1e-6)


def test_result_is_json_and_deterministic():
    truth, labels = random_case(200)
    groups = [f"g{i % 50}" for i in range(200)]
    first = metrics.compute_metrics(
        truth, labels, groups=groups, true_probabilities=truth, folds=np.arange(200) % 5
    )
    again = metrics.compute_metrics(
        truth, labels, groups=groups, true_probabilities=truth, folds=np.arange(200) % 5
    )
    written = json.dumps(first.to_json(), allow_nan=False)
    assert written == json.dumps(again.to_json(), allow_nan=False)
    assert [fold["n"] for fold in json.loads(written)["folds"]] == [40] * 5
    assert first.score.n_groups == 50


@pytest.mark.parametrize("seed", range(5))
def test_true_model_scores_its_known_best_within_the_interval(seed):
    truth, labels = random_case(3000, seed)
    got = metrics.compute_metrics(truth, labels, true_probabilities=truth, seed=seed).score
    low, high = got.log_loss_ci
    assert low < got.best_possible < high
    assert got.expected_log_loss == pytest.approx(got.best_possible)
    assert got.scaling.temperature == pytest.approx(1.0, abs=0.1)
    assert got.smooth_ece < 0.03


def test_temperature_undoes_a_known_one_out_of_fold():
    truth, labels = random_case(4000, 3)
    sharpened = calibration.apply_temperature(truth, 0.5)
    got = metrics.compute_metrics(sharpened, labels).score
    assert got.scaling.temperature == pytest.approx(2.0, rel=0.1)
    true_loss = calibration.log_losses(truth, labels).mean()
    assert got.scaling.log_loss_after_temperature == pytest.approx(true_loss, abs=0.01)
    assert got.scaling.log_loss_after_temperature < got.log_loss - 0.1


def test_temperature_of_a_part_ignores_the_labels_of_that_part():
    truth, labels = random_case(300, 4)
    part = np.arange(300) % 3
    before = calibration.temperature_out_of_fold(truth, labels, part)
    changed = np.where(part == 0, (labels + 1) % 3, labels)
    after = calibration.temperature_out_of_fold(truth, changed, part)
    np.testing.assert_array_equal(before[part == 0], after[part == 0])
    assert not np.allclose(before[part == 1], after[part == 1])


def test_smooth_calibration_error_of_known_cases():
    constant = np.full(1000, 0.6)
    outcome = (np.arange(1000) < 300).astype(float)
    assert calibration.smooth_calibration_error(constant, outcome) == pytest.approx(0.3, abs=1e-3)
    random = np.random.default_rng(0)
    calibrated = random.random(20000)
    outcomes = (random.random(20000) < calibrated).astype(float)
    assert calibration.smooth_calibration_error(calibrated, outcomes) < 0.02
    sure = (random.random(20000) < 0.5).astype(float)
    assert calibration.smooth_calibration_error(sure, sure) < 1e-3
    assert calibration.smooth_calibration_error(sure, 1 - sure) > 0.4


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_temperature_flattens_or_sharpens_to_the_share_of_right_rows(share):
    """Three to one against each other outcome, raised to 1 / T, must give the share."""
    probabilities = np.tile([0.6, 0.2, 0.2], (1000, 1))
    labels = np.where(np.arange(1000) < 1000 * share, 0, 1 + np.arange(1000) % 2)
    expected = np.log(3) / np.log(2 * share / (1 - share))
    assert calibration.fit_temperature(probabilities, labels) == pytest.approx(expected, rel=1e-3)


def test_the_temperature_has_limits():
    probabilities = np.tile([0.4, 0.3, 0.3], (50, 1))
    for label, limit in ((1, 20.0), (0, 0.05)):
        temperature = calibration.fit_temperature(probabilities, np.full(50, label))
        assert temperature == pytest.approx(limit, rel=1e-3)


def test_no_rows_one_row_and_a_missing_class():
    empty = metrics.compute_metrics(np.empty((0, 3)), np.empty(0, dtype=int), train_prior=[0.4, 0.3, 0.3])
    assert empty.score is None
    written = json.loads(json.dumps(empty.to_json(), allow_nan=False))
    assert written["n"] == 0 and written["log_loss"] is None and written["log_loss_ci"] is None
    one = metrics.compute_metrics(np.array([[0.2, 0.3, 0.5]]), np.array([2]))
    assert one.score.log_loss == pytest.approx(math.log(2)) and one.score.log_loss_ci is None
    json.dumps(one.to_json(), allow_nan=False)
    two_classes = metrics.compute_metrics(np.full((20, 3), 1 / 3), np.arange(20) % 2)
    assert two_classes.score.class_counts["tie"] == 0
    json.dumps(two_classes.to_json(), allow_nan=False)


def test_class_prior_without_training_rows_is_the_best_constant():
    labels = np.array([0] * 6 + [1] * 3 + [2] * 3)
    got = metrics.compute_metrics(np.full((12, 3), 1 / 3), labels).score
    assert got.baselines.class_prior == pytest.approx(1.5 * math.log(2))
    assert got.class_prior_source == "evaluated rows"


def test_two_folds_are_scored_one_by_one_and_give_a_temperature():
    truth, labels = random_case(40)
    folds = np.arange(40) % 2
    got = metrics.compute_metrics(truth, labels, folds=folds).score
    want = [calibration.log_losses(truth[folds == fold], labels[folds == fold]).mean() for fold in (0, 1)]
    assert [(fold.fold, fold.n) for fold in got.folds] == [(0, 20), (1, 20)]
    assert [fold.log_loss for fold in got.folds] == pytest.approx(want)
    assert got.fold_std == pytest.approx(abs(want[0] - want[1]) / math.sqrt(2))
    out_of_fold = calibration.temperature_out_of_fold(truth, labels, folds)
    assert got.scaling.log_loss_after_temperature == pytest.approx(
        calibration.log_losses(out_of_fold, labels).mean()
    )


def test_errors_say_value_rule_and_remedy():
    good = np.full((3, 3), 1 / 3)
    labels = np.array([0, 1, 2])
    with pytest.raises(UserError, match=r"row 1 are not finite.*bfloat16"):
        metrics.compute_metrics(np.where(np.arange(3)[:, None] == 1, np.nan, good), labels)
    with pytest.raises(UserError, match=r"row 0 and 2 others .* sums to 2\..*softmax"):
        metrics.compute_metrics(good * 2, labels)
    with pytest.raises(UserError, match="row 1 and 1 others are not a distribution"):
        metrics.compute_metrics(good * np.array([[1], [2], [2]]), labels)
    with pytest.raises(UserError, match="not a distribution"):
        metrics.compute_metrics(np.array([[1.5, -0.5, 0.0]]), np.array([0]))
    with pytest.raises(ValueError, match=r"shape \(3, 2\); expected \[n, 3\]"):
        metrics.compute_metrics(good[:, :2], labels)
    with pytest.raises(ValueError, match=r"expected \[3\]"):
        metrics.compute_metrics(good, labels[:2])
    with pytest.raises(ValueError, match="drop unlabelled rows"):
        metrics.compute_metrics(good, np.array([0, 1, -1]))
    with pytest.raises(ValueError, match="drop unlabelled rows"):
        metrics.compute_metrics(good, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="2 groups for 3 rows"):
        metrics.compute_metrics(good, labels, groups=["x", "y"])


def test_swap_consistency():
    forward = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    swapped = np.array([[0.4, 0.5, 0.1], [0.2, 0.2, 0.6]])
    got = metrics.swap_consistency(forward, swapped)
    assert got == SwapConsistency(
        n=2, mean_shift=pytest.approx(0.1), flips=0.5, first_position_bias=pytest.approx(0.1)
    )


def test_score_leaves_unlabelled_rows_out_and_takes_groups_folds_and_swap_from_the_predictions():
    truth, labels = random_case(60)
    labels[:10] = -1
    groups = [f"g{i % 12}" for i in range(60)]
    p = Predictions(
        [str(i) for i in range(60)], np.arange(60) % 2, truth.astype(np.float32), labels, {"group": groups}
    )
    got = metrics.score_predictions(
        with_swap(p, truth[:, [1, 0, 2]]), train_prior=[0.3, 0.3, 0.4], true_probabilities=truth
    )
    want = metrics.compute_metrics(truth[10:], labels[10:], groups=groups[10:], train_prior=[0.3, 0.3, 0.4])
    assert got.score.log_loss == pytest.approx(want.score.log_loss, abs=1e-6)
    assert got.score.log_loss_ci == pytest.approx(want.score.log_loss_ci, abs=1e-6)
    assert (got.score.n, got.n_unlabelled, len(got.score.folds)) == (50, 10, 2)
    near_zero = pytest.approx(0, abs=1e-7)
    assert got.swap == SwapConsistency(n=60, mean_shift=near_zero, flips=0.0, first_position_bias=near_zero)
    assert got.score.best_possible > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_simulated_arenas_true_model_scores_its_known_best_within_the_interval(seed):
    rows = simulate(3000, seed, "short")
    truth = np.array([row.true_probabilities for row in rows])
    got = metrics.compute_metrics(
        truth,
        np.array([row.label for row in rows]),
        groups=["\n".join(row.prompts) for row in rows],
        true_probabilities=truth,
    ).score
    low, high = got.log_loss_ci
    assert low < got.best_possible < high
    assert got.best_possible < got.baselines.class_prior - 0.1


def full_metrics() -> Metrics:
    """Metrics in which no part is missing."""
    truth, labels = random_case(40)
    p = Predictions(list(map(str, range(40))), np.arange(40) % 2, truth.astype(np.float32), labels)
    for names in (BASELINE_COLUMNS, FORM_COLUMNS):
        p = with_columns(p, names, truth)
    scored = metrics.score_predictions(with_swap(p, truth), true_probabilities=truth)
    return dataclasses.replace(
        scored,
        scoring=ScoringSpeed(2.0, 20.0, 400.0, 1.0, swap_seconds=1.0, swap_seconds_saved=0.5),
        trained_rows=Overlap(left_out=3, scored=0),
        runs_compared=(ModelScore(("RUN",), 1.0, None, None),),
        adjustment="stack",
        adjusted=adjustment.compare(p, {"temperature": truth, "stack": truth}),
        weight_average=WeightAverage(runs=2, rows=32, mean_distance=0.01),
    )


def test_every_number_is_documented():
    got = full_metrics().to_json()
    text = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {*got, *(f"baselines.{name}" for name in got["baselines"])} - {"baselines"}
    names |= {*got["scoring"], *got["trained_rows"], *got["swap"], *got["adjusted"], *got["adjusted"]["raw"]}
    names |= {*got["weight_average"]}
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_layout_of_metrics_json_is_stable():
    got = full_metrics().to_json()
    assert got["version"] == 1
    assert got.keys() == {
        "version", "log_loss", "log_loss_ci", "accuracy", "n", "n_groups", "n_unlabelled", "brier",
        "smooth_ece", "smooth_ece_by_class", "class_counts", "predicted_counts", "mean_probabilities",
        "baselines", "class_prior_source", "against_logistic_regression", "against_form", "temperature",
        "log_loss_after_temperature", "best_possible", "expected_log_loss", "folds", "fold_std",
        "leaderboard_estimate", "leaderboard_note", "swap", "scoring", "trained_rows", "runs_compared",
        "adjustment", "adjusted", "weight_average",
    }  # fmt: skip
    assert got["baselines"].keys() == {"uniform", "class_prior", "logistic_regression", "form"}
    assert got["against_logistic_regression"].keys() == {"difference", "difference_ci", "first_better"}
    assert got["folds"][1].keys() == {"fold", "n", "log_loss"}
    assert got["swap"].keys() == {"n", "mean_shift", "flips", "first_position_bias"}
    assert got["trained_rows"] == {"left_out": 3, "scored": 0}
    assert got["scoring"]["tokens_per_second"] == 400.0 and got["scoring"]["swap_seconds_saved"] == 0.5
    assert list(got["adjusted"]) == ["raw", "temperature", "stack"]
    assert got["adjusted"]["stack"].keys() == {"log_loss", "against_raw", "against_logistic_regression"}
    assert got["adjusted"]["raw"]["against_raw"] is None
    assert got["runs_compared"][0].keys() == {"runs", "log_loss", "difference", "difference_ci"}
