"""The regression learns what the form of the responses tells, and accepts unusual training rows."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate import baselines, calibration
from lmsys_unsloth.evaluate.baselines import FEATURES, class_prior


def row(a: str, b: str, label: int | None = 0, prompt: str = "Tell me about tea") -> Comparison:
    return Comparison("x", (prompt,), (a,), (b,), label)


def feature(name: str, comparison: Comparison) -> float:
    return float(baselines.features([comparison])[0, FEATURES.index(name)])


def test_features_of_known_texts():
    listed = row("# Tea\n- green\n* black\n1. white\n2) **old**\nend", "Tea")
    assert feature("list items", listed) == pytest.approx(np.log1p(4))
    assert feature("bold or headings", listed) == pytest.approx(np.log1p(3))
    assert feature("code blocks", row("```py\nx\n```", "x")) == pytest.approx(np.log1p(2))
    assert feature("length", row("abc", "")) == pytest.approx(np.log1p(3))
    assert feature("similarity of the answers", row("one two three", "Three, four!")) == pytest.approx(1 / 4)
    assert feature("similarity to the prompt", row("tea me", "coffee")) == pytest.approx(2 / 4)
    assert feature("identical answers", row("same", "same")) == 1
    assert feature("similarity of the answers", row("", "")) == 1


def test_swapping_the_responses_negates_the_first_five_features_and_keeps_the_others():
    comparison = row("- a long list\n- with ```code``` and **bold** tea", "short")
    first, second = baselines.features([comparison, comparison.swapped()])
    np.testing.assert_allclose(first[:5], -second[:5])
    np.testing.assert_allclose(first[5:], second[5:])
    assert (first[:5] > 0).all()


def test_the_regression_learns_that_the_longer_response_wins():
    random = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        a, b = random.integers(1, 200, 2)
        rows.append(row("word " * a, "word " * b, label=0 if a > b else 1))
    p = baselines.logistic_regression(rows[:200], rows[200:])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    labels = np.array([r.label for r in rows[200:]])
    assert (p.argmax(axis=1) == labels).mean() > 0.9
    assert p[:, 2] == pytest.approx(class_prior(np.array([r.label for r in rows[:200]]))[2])


def test_training_rows_of_one_outcome_or_none_give_the_class_prior():
    validation = [row("a", "b"), row("c", "d", None)]
    np.testing.assert_allclose(baselines.logistic_regression([], validation), 1 / 3)
    p = baselines.logistic_regression([row("a", "b", 1), row("c", "d", 1), row("e", "f", None)], validation)
    np.testing.assert_allclose(p, [[0.2, 0.6, 0.2]] * 2)
    assert baselines.logistic_regression([row("a", "b", 1)], []).shape == (0, 3)


def test_cross_validated_predictions_come_from_the_other_folds():
    rows = [row("word " * (1 + i % 7), "word " * (1 + i % 5), i % 3) for i in range(60)]
    folds = np.arange(60) % 2
    p = baselines.cross_validate(rows, folds)
    np.testing.assert_allclose(p[::2], baselines.logistic_regression(rows[1::2], rows[::2]))
    np.testing.assert_allclose(p[1::2], baselines.logistic_regression(rows[::2], rows[1::2]))


def test_the_regression_beats_the_class_prior_on_real_rows(shared):
    with (shared / "data" / "tulu_human_eval.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [
        Comparison(
            line["id"],
            *(
                tuple(text or "" for text in json.loads(line[c]))
                for c in ("prompt", "response_a", "response_b")
            ),
            label=[line["winner_model_a"], line["winner_model_b"], line["winner_tie"]].index("1"),
        )
        for line in lines
    ]
    prompts = sorted({r.prompts for r in rows})
    held_out = set(prompts[::5])
    train, validation = (
        [r for r in rows if r.prompts not in held_out],
        [r for r in rows if r.prompts in held_out],
    )
    labels = np.array([r.label for r in validation])
    regression = calibration.log_losses(baselines.logistic_regression(train, validation), labels).mean()
    prior = class_prior(np.array([r.label for r in train]))
    constant = calibration.log_losses(np.tile(prior, (len(labels), 1)), labels).mean()
    assert regression < constant - 0.05
