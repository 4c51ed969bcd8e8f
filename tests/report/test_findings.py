"""Sentences follow the numbers: what matters is said, and what isn't so is not."""

from __future__ import annotations

import numpy as np
import pytest

from lmsys_unsloth.evaluate import calibration, metrics
from lmsys_unsloth.report import findings


def known_case(n: int = 3000, temperature: float = 1.0):
    random = np.random.default_rng(0)
    truth = random.dirichlet([1, 1, 1], n)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return calibration.apply_temperature(truth, temperature), labels, truth


def texts(m, slices=None) -> str:
    return "\n".join(sentence.text for sentence in findings.summary(m, slices))


def tones(m) -> list[str]:
    return [sentence.tone for sentence in findings.summary(m)]


def test_headline():
    m = {"log_loss": 0.93, "log_loss_ci": [0.92, 0.94], "baselines": {"class_prior": 1.098}}
    assert findings.headline(m) == "log loss 0.930 ± 0.010, 0.168 better than the class prior"
    m |= {"log_loss": 1.234, "log_loss_ci": None}
    assert findings.headline(m) == "log loss 1.234, 0.136 worse than the class prior"
    assert "predictions only" in findings.headline({"log_loss": None, "baselines": {"class_prior": None}})


def test_a_good_model():
    p, labels, truth = known_case(6000)
    m = metrics.compute_metrics(
        p, labels, true_probabilities=truth, baseline_probabilities=np.full_like(p, 1 / 3)
    )
    said = texts(m)
    assert "clearly better than the class prior" in said
    assert "It beats, by " in said and "may be chance" not in said
    assert "of the way from the class prior" in said
    assert "about as sure as they should be" in said
    assert "leaderboard" not in said  # simulated rows have none
    assert tones(m)[:2] == ["good", "good"]
    assert findings.advice(m) == []


def test_a_model_that_loses_to_logistic_regression_is_called_out():
    p, labels, truth = known_case()
    flat = (p + 1) / 4
    m = metrics.compute_metrics(flat, labels, baseline_probabilities=truth)
    sentence = next(s for s in findings.summary(m) if "logistic regression" in s.text)
    assert sentence.tone == "bad" and sentence.text.startswith("It loses by")
    assert any("form alone predicts better" in tip for tip in findings.advice(m))


def test_an_untrained_model_is_worse_than_a_constant():
    p, labels, _ = known_case(temperature=0.2)
    m = metrics.compute_metrics(np.roll(p, 1, axis=1), labels)
    assert tones(m)[0] == "bad" and "worse than the class prior" in texts(m)
    assert "A constant would score better" in findings.advice(m)[0]


def test_too_sure_and_too_timid():
    for temperature, words in ((0.5, "too sure"), (2.0, "too timid")):
        p, labels, _ = known_case(temperature=temperature)
        m = metrics.compute_metrics(p, labels)
        assert words in texts(m)
        assert any(words in tip for tip in findings.advice(m))


def test_position_bias():
    p, labels, _ = known_case()
    swap = {"n": 3000, "mean_shift": 0.2, "flips": 0.3, "first_position_bias": -0.05}
    m = metrics.compute_metrics(p, labels) | {"swap": swap}
    assert "Being shown second gains a bot 5.0% probability" in texts(m)
    assert any("data.swap=both" in tip for tip in findings.advice(m))


def test_few_rows_and_chance():
    p = known_case(20)[0]
    m = metrics.compute_metrics(p, p.argmax(axis=1))
    assert any("interval is wide" in tip for tip in findings.advice(m))
    assert "With 20 prompts the interval is itself uncertain." in texts(m) and tones(m)[0] == "plain"
    right = np.arange(40) < 22  # 22 of 40 right, hardly better than a coin
    p = np.where((np.arange(40) % 2 == 0)[:, None] == right[:, None], [0.52, 0.48, 0.0], [0.48, 0.52, 0.0])
    coin = metrics.compute_metrics(p, np.arange(40) % 2, train_prior=[0.5, 0.5, 0.0])
    assert coin["accuracy"] == 0.55 and coin["log_loss"] < coin["baselines"]["class_prior"]
    assert "The interval includes the prior, so this may be chance." in texts(coin)


def test_weak_spots_and_truncation():
    p, labels, _ = known_case()
    m = metrics.compute_metrics(p, labels)
    loss = m["log_loss"]

    def part(name, above):
        return {
            "name": name,
            "n": 50,
            "log_loss": loss + above,
            "ci": [loss + above - 0.05, loss + above + 0.05],
        }

    slices = {
        "Share truncated": [part("nothing cut", 0.0), part("half or more cut", 0.2)],
        "Outcome": [part("tie", 0.5)],
    }
    said = texts(m, slices)
    assert f"Weaker than average on share truncated: half or more cut ({loss + 0.2:.3f}, n = 50)." in said
    assert any("larger prompt.max_tokens" in tip for tip in findings.advice(m, slices))


def test_no_labels():
    empty = metrics.compute_metrics(np.empty((0, 3)), np.empty(0, dtype=int))
    assert "nothing could be scored" in texts(empty)
    assert "known outcomes" in findings.advice(empty)[0]


@pytest.mark.parametrize("n", [1, 2, 20])
def test_any_number_of_rows_can_be_told(n):
    p, labels, truth = known_case(n)
    m = metrics.compute_metrics(
        p, labels, true_probabilities=truth, baseline_probabilities=truth, folds=np.arange(n) % 2
    )
    assert findings.summary(m) and all(sentence.text.endswith(".") for sentence in findings.summary(m))
