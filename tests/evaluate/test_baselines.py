"""The regression learns what the form of the responses tells, and accepts unusual training rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lmsys_unsloth.core.arrays import Floats
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.comparison import Comparison, label_array
from lmsys_unsloth.data.form.features import FEATURES, form_features
from lmsys_unsloth.data.form.regression import class_prior
from lmsys_unsloth.evaluate import baselines, calibration


def row(a: str, b: str, label: int | None = 0, prompt: str = "Tell me about tea") -> Comparison:
    return Comparison("x", (prompt,), (a,), (b,), label)


def predicted(train: Sequence[Comparison], validation: Sequence[Comparison]) -> Floats:
    """Predictions of the validation rows by the baseline, fitted on the training rows."""
    fitted = baselines.fit_baseline(form_features(train), label_array(train))
    return fitted.predict_form(form_features(validation))


def test_the_regression_learns_that_the_longer_response_wins():
    random = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        a, b = random.integers(1, 200, 2)
        rows.append(row("word " * a, "word " * b, label=0 if a > b else 1))
    p = predicted(rows[:200], rows[200:])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    labels = np.array([r.label for r in rows[200:]])
    assert (p.argmax(axis=1) == labels).mean() > 0.9
    assert p[:, 2] == pytest.approx(class_prior(np.array([r.label for r in rows[:200]]))[2])


def test_the_baseline_is_a_regression_of_scikit_learn_on_twelve_features():
    rows = simulate(300, 0, "short")
    inputs = form_features(rows)[:, [FEATURES.index(name) for name in baselines.INPUTS]]
    assert inputs.shape[1] == 12
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=1000))
    expected = pipeline.fit(inputs[:200], label_array(rows[:200])).predict_proba(inputs[200:])
    found = predicted(rows[:200], rows[200:])
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # as far as the optimiser found the minimum


def test_training_rows_of_one_outcome_or_none_give_the_class_prior():
    validation = [row("a", "b"), row("c", "d", None)]
    np.testing.assert_allclose(predicted([], validation), 1 / 3)
    p = predicted([row("a", "b", 1), row("c", "d", 1), row("e", "f", None)], validation)
    np.testing.assert_allclose(p, [[0.2, 0.6, 0.2]] * 2)
    assert predicted([row("a", "b", 1)], []).shape == (0, 3)


def test_cross_validated_predictions_come_from_the_other_folds():
    rows = [row("word " * (1 + i % 7), "word " * (1 + i % 5), i % 3) for i in range(60)]
    folds = np.arange(60) % 2
    p = baselines.predict_parts(form_features(rows), label_array(rows), folds, baselines.fit_baseline)
    np.testing.assert_allclose(p[::2], predicted(rows[1::2], rows[::2]))
    np.testing.assert_allclose(p[1::2], predicted(rows[::2], rows[1::2]))


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
    regression = calibration.log_losses(predicted(train, validation), labels).mean()
    prior = class_prior(np.array([r.label for r in train]))
    constant = calibration.log_losses(np.tile(prior, (len(labels), 1)), labels).mean()
    assert regression < constant - 0.05
