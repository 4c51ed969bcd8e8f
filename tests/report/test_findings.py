"""Findings state what the metrics show, and nothing that they do not show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lmsys_unsloth.data.selection import Overlap
from lmsys_unsloth.evaluate import calibration, metrics
from lmsys_unsloth.evaluate.scores import Metrics, ModelScore, ScoringSpeed, SwapConsistency
from lmsys_unsloth.report import findings
from lmsys_unsloth.report.slices import Slice


def known_case(n: int = 3000, temperature: float = 1.0):
    random = np.random.default_rng(0)
    truth = random.dirichlet([1, 1, 1], n)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return calibration.apply_temperature(truth, temperature), labels, truth


def texts(m: Metrics, slices=None) -> str:
    return "\n".join(finding.text for finding in findings.list_findings(m, slices))


def tones(m: Metrics) -> list[str]:
    return [finding.tone for finding in findings.list_findings(m)]


def suggestions(m: Metrics, slices=None) -> list[str]:
    return [finding.suggestion for finding in findings.list_findings(m, slices) if finding.suggestion]


def with_score(m: Metrics, **changes) -> Metrics:
    return dataclasses.replace(m, score=dataclasses.replace(m.score, **changes))


def test_headline():
    p, labels, _ = known_case(20)
    m = metrics.compute_metrics(p, labels)
    baselines = dataclasses.replace(m.score.baselines, class_prior=1.098)
    m = with_score(m, log_loss=0.93, log_loss_ci=(0.92, 0.94), baselines=baselines)
    assert findings.headline(m) == "log loss 0.930 ± 0.010, 0.168 better than the class prior"
    m = with_score(m, log_loss=1.234, log_loss_ci=None)
    assert findings.headline(m) == "log loss 1.234, 0.136 worse than the class prior"
    assert findings.headline(Metrics()) == "no labelled rows: predictions only"


def test_a_good_model():
    p, labels, truth = known_case(6000)
    m = metrics.compute_metrics(
        p, labels, true_probabilities=truth, baseline_probabilities=np.full_like(p, 1 / 3)
    )
    said = texts(m)
    assert "clearly better than the class prior" in said
    assert "It beats a logistic regression" in said and "due to chance" not in said
    assert "of the distance from the class prior" in said
    assert "neither over- nor underconfident" in said
    assert "leaderboard" not in said  # simulated rows have none
    assert tones(m)[:2] == ["good", "good"]
    assert suggestions(m) == []


def test_a_model_that_loses_to_logistic_regression_is_reported_as_bad():
    p, labels, truth = known_case()
    flat = (p + 1) / 4
    m = metrics.compute_metrics(flat, labels, baseline_probabilities=truth)
    finding = next(f for f in findings.list_findings(m) if "logistic regression" in f.text)
    assert finding.tone == "bad" and finding.text.startswith("It loses to")
    assert any("form alone predicts better" in tip for tip in suggestions(m))


def test_what_a_model_knows_beyond_the_form_is_reported():
    p, labels, truth = known_case()
    better = metrics.compute_metrics(truth, labels, form_probabilities=(p + 1) / 4)
    assert "without the model: the model knows more, by 0." in texts(better)
    equal = metrics.compute_metrics(truth, labels, form_probabilities=truth)
    assert "does not show that the model knows more" in texts(equal)
    worse = metrics.compute_metrics((p + 1) / 4, labels, form_probabilities=truth)
    finding = next(f for f in findings.list_findings(worse) if "without the model" in f.text)
    assert finding.tone == "bad" and "better than the model, by 0." in finding.text
    assert any("or set eval.stack=true" in tip for tip in suggestions(worse))
    assert "that head.offset" not in texts(metrics.compute_metrics(truth, labels))


def test_a_model_that_is_worse_than_a_constant_is_reported_as_bad():
    p, labels, _ = known_case(temperature=0.2)
    m = metrics.compute_metrics(np.roll(p, 1, axis=1), labels)
    assert tones(m)[0] == "bad" and "worse than the class prior" in texts(m)
    assert "A constant prediction would score better" in suggestions(m)[0]
    assert not any("confident" in tip for tip in suggestions(m))


@pytest.mark.parametrize(("temperature", "word"), [(0.5, "overconfident"), (2.0, "underconfident")])
def test_overconfident_and_underconfident_probabilities(temperature, word):
    p, labels, _ = known_case(temperature=temperature)
    m = metrics.compute_metrics(p, labels)
    assert f"The probabilities are {word}" in texts(m)
    assert any(f"the probabilities are {word}" in tip for tip in suggestions(m))


def test_position_bias():
    p, labels, _ = known_case()
    swap = SwapConsistency(n=3000, mean_shift=0.2, flips=0.3, first_position_bias=-0.05)
    m = dataclasses.replace(metrics.compute_metrics(p, labels), swap=swap)
    assert "Being shown second raises a response's probability by 5.0 percentage points" in texts(m)
    assert "changes the most probable outcome of 30.0% of 3,000 rows" in texts(m)
    assert any("data.swap=both" in tip for tip in suggestions(m))


def test_time_saved_by_swapping_uncertain_rows_only():
    p, labels, _ = known_case()
    swap = SwapConsistency(n=750, mean_shift=0.0, flips=0.0, first_position_bias=0.0)
    speed = ScoringSpeed(100.0, 37.5, 9000.0, 2.0, swap_seconds=20.0, swap_seconds_saved=60.0)
    m = dataclasses.replace(metrics.compute_metrics(p, labels), swap=swap, scoring=speed)
    assert "Only the 750 least certain of 3,000 rows" in texts(m) and "about 60 s of 160 s" in texts(m)


def test_few_rows_and_chance():
    p = known_case(20)[0]
    m = metrics.compute_metrics(p, p.argmax(axis=1))
    assert "The interval of the log loss is wide (±" in texts(m)
    assert any("compare runs on the same rows" in tip for tip in suggestions(m))
    assert "With only 20 prompts, the interval itself is unreliable." in texts(m) and tones(m)[0] == "plain"
    right = np.arange(40) < 22  # 22 of 40 right, hardly better than a coin
    p = np.where((np.arange(40) % 2 == 0)[:, None] == right[:, None], [0.52, 0.48, 0.0], [0.48, 0.52, 0.0])
    coin = metrics.compute_metrics(p, np.arange(40) % 2, train_prior=[0.5, 0.5, 0.0])
    assert coin.score.accuracy == 0.55 and coin.score.log_loss < coin.score.baselines.class_prior
    assert "The interval includes the class prior, so the difference may be due to chance." in texts(coin)


def test_weak_slices_and_truncation():
    p, labels, _ = known_case()
    m = metrics.compute_metrics(p, labels)
    loss = m.score.log_loss

    def part(name, above):
        return Slice(name, 50, loss + above, (loss + above - 0.05, loss + above + 0.05), 0.5)

    slices = {
        "Share truncated": [part("nothing cut", 0.0), part("half or more cut", 0.2)],
        "Outcome": [part("tie", 0.5)],
    }
    said = texts(m, slices)
    assert f"above average on share truncated: half or more cut ({loss + 0.2:.3f}, 50 rows)." in said
    assert any("larger prompt.max_tokens" in tip for tip in suggestions(m, slices))


def test_an_average_is_compared_with_its_best_model():
    p, labels, _ = known_case()
    m = metrics.compute_metrics(p, labels)
    models = [
        ModelScore((f"RUN{k}",), m.score.log_loss + gap, None, None) for k, gap in enumerate((0.2, 0.1))
    ]
    said = texts(dataclasses.replace(m, runs_compared=tuple(models)))
    best = f"the best model alone (model 2, {m.score.log_loss + 0.1:.3f})"
    assert f"an average of 2 models, 0.100 better than {best}." in said


@pytest.mark.parametrize(
    ("scored", "warning"),
    [
        (1, "1 of the 3,000 scored rows was used to train this model"),
        (1200, "1,200 of the 3,000 scored rows were used to train this model"),
        (None, "an unknown number of the 3,000 scored rows may have been used to train this model"),
    ],
)
def test_scored_training_rows_are_reported_first(scored, warning):
    p, labels, _ = known_case()
    m = dataclasses.replace(metrics.compute_metrics(p, labels), trained_rows=Overlap(0, scored))
    first, *others = findings.list_findings(m)
    capitalised = warning[0].upper() + warning[1:]
    assert (
        first.text == f"{capitalised}, so the log loss says nothing about new rows." and first.tone == "bad"
    )
    assert others and not any(finding.tone == "good" for finding in others)
    assert findings.headline(m).endswith(f"than the class prior; {warning}")
    (tip,) = suggestions(m)
    assert "eval.trained_rows=include" in tip and "debug.evaluate_on_train" in tip


def test_training_rows_that_were_left_out_are_counted():
    p, labels, _ = known_case()
    scored = metrics.compute_metrics(p, labels)
    m = dataclasses.replace(scored, trained_rows=Overlap(left_out=1234, scored=0))
    assert "1,234 labelled rows were not scored because this model was trained on them." in texts(m)
    assert findings.headline(m) == findings.headline(scored) and tones(m)[0] == "good"
    none = dataclasses.replace(scored, trained_rows=Overlap(left_out=0, scored=0))
    assert texts(none) == texts(scored)


def test_no_labels():
    empty = metrics.compute_metrics(np.empty((0, 3)), np.empty(0, dtype=int))
    assert "nothing could be scored" in texts(empty)
    assert "known outcomes" in suggestions(empty)[0]


@pytest.mark.parametrize("n", [1, 2, 20])
def test_findings_are_sentences_for_any_number_of_rows(n):
    p, labels, truth = known_case(n)
    m = metrics.compute_metrics(
        p, labels, true_probabilities=truth, baseline_probabilities=truth, folds=np.arange(n) % 2
    )
    found = findings.list_findings(m)
    assert found and all(finding.text.endswith(".") for finding in found)
