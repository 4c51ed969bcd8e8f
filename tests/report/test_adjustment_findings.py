"""Calibration and stacking are recommended when they help by more than noise, and not otherwise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from lmsys_unsloth.evaluate import adjustment, calibration, metrics
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scores import Metrics, WeightAverage
from lmsys_unsloth.evaluate.stacking import Method
from lmsys_unsloth.report import findings

Array = NDArray[np.float64]


def known_case(n: int, temperature: float) -> tuple[Predictions, Array]:
    """Predictions with a temperature, and the true probabilities."""
    random = np.random.default_rng(0)
    truth = random.dirichlet([1, 1, 1], n)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    p = calibration.apply_temperature(truth, temperature).astype(np.float32)
    return Predictions([str(k) for k in range(n)], np.arange(n) % 5, p, labels), truth


def scored(predicted: Predictions, candidates: dict[Method, Array], method: Method = "none") -> Metrics:
    final = predicted if method == "none" else adjustment.adjusted(predicted, candidates[method])
    compared = adjustment.compare(predicted, candidates)
    return dataclasses.replace(metrics.score_predictions(final), adjustment=method, adjusted=compared)


def suggestions(m: Metrics) -> str:
    return "\n".join(finding.suggestion or "" for finding in findings.list_findings(m))


def texts(m: Metrics) -> str:
    return "\n".join(finding.text for finding in findings.list_findings(m))


def test_a_temperature_that_helps_is_recommended_as_a_setting() -> None:
    predicted, truth = known_case(3000, 0.5)
    m = scored(predicted, {"temperature": truth, "stack": truth})
    assert "Set eval.calibrate=temperature" in suggestions(m) and "eval.stack" not in suggestions(m)


def test_a_stack_that_helps_more_is_recommended_with_its_interval() -> None:
    predicted, truth = known_case(3000, 2.0)
    m = scored(predicted, {"temperature": predicted.probabilities.astype(float), "stack": truth})
    assert "Set eval.stack=true: it lowers the log loss by 0." in suggestions(m)
    assert "95% interval" in texts(m).split("Stacked with a regression on form")[1]


@pytest.mark.parametrize("n", [20, 3000])
def test_a_stack_that_does_not_help_is_not_recommended(n: int) -> None:
    predicted, truth = known_case(n, 1.0)
    noise = 0.9 * truth + 0.1 * np.random.default_rng(1).dirichlet([1, 1, 1], n)
    m = scored(predicted, {"temperature": truth, "stack": noise})
    assert "eval.stack" not in suggestions(m)
    (said,) = [line for line in texts(m).splitlines() if line.startswith("Stacked")]
    pair = m.adjusted["stack"].against_raw
    assert pair is not None and pair.difference_ci is not None
    clear = n > 20 and not pair.difference_ci[0] <= 0 <= pair.difference_ci[1]
    assert ("higher than raw" in said) == (pair.difference > 0) and clear == ("due to chance" not in said)


def test_a_stack_that_is_clearly_worse_is_said_to_be() -> None:
    predicted, truth = known_case(3000, 1.0)
    m = scored(predicted, {"temperature": truth, "stack": np.full_like(truth, 1 / 3)})
    (said,) = [line for line in texts(m).splitlines() if line.startswith("Stacked")]
    assert "higher than raw" in said and "due to chance" not in said


@pytest.mark.parametrize(("method", "word"), [("temperature", "(calibrated)"), ("stack", "(stacked)")])
def test_the_headline_says_how_the_predictions_were_adjusted(method: Method, word: str) -> None:
    predicted, truth = known_case(3000, 0.5)
    m = scored(predicted, {"temperature": truth, "stack": truth}, method)
    assert word in findings.headline(m) and m.score is not None
    assert m.score.log_loss == pytest.approx(m.adjusted[method].log_loss, abs=1e-6)
    assert m.score.scaling is not None and m.score.scaling.temperature == pytest.approx(2.0, rel=0.1)
    assert "The raw probabilities are overconfident" in texts(m)
    assert "eval.calibrate" not in suggestions(m) and "eval.stack" not in suggestions(m)


@pytest.mark.parametrize(("distance", "tone"), [(0.002, "plain"), (0.2, "bad")])
def test_averaged_adapters_that_predict_otherwise_are_reported(distance: float, tone: str) -> None:
    average = WeightAverage(runs=5, rows=32, mean_distance=distance)
    predicted, _ = known_case(100, 1.0)
    for m in (scored(predicted, {}), Metrics()):
        found = findings.list_findings(dataclasses.replace(m, weight_average=average))
        assert [f.tone for f in found if "averaged adapters of 5 runs" in f.text] == [tone]
