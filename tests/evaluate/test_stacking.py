"""The stack is as good as its better part, treats both responses alike, and sees no label of its own part."""

from __future__ import annotations

import dataclasses
import json
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import fit_form
from lmsys_unsloth.evaluate import baselines, stacking
from lmsys_unsloth.evaluate.bootstrap import paired_bootstrap
from lmsys_unsloth.evaluate.calibration import apply_temperature, fit_temperature, log_losses
from lmsys_unsloth.evaluate.stacking import (
    PENALTY,
    POSITION_PENALTY,
    Calibration,
    adjust_parts,
    fit_stack,
    stack_inputs,
)

Array = NDArray[np.float64]
ONCE, BOTH = np.ones, np.zeros
"""Rows that the model saw in one order of the responses, and in both."""

NOISE = 0.03
"""Log loss that may be lost to the better part by fitting five numbers on eighty rows."""


@pytest.fixture(scope="module")
def arena() -> tuple[Array, Array, NDArray[np.int64]]:
    """Features, true probabilities and labels of simulated rows."""
    rows = simulate(3000, 11, "short")
    truth = np.array([row.true_probabilities for row in rows])
    return form_features(rows), truth, np.array([row.label for row in rows])


def predict(kind: str, truth: Array) -> Array:
    """Predictions of models of different quality."""
    random = np.random.default_rng(1)
    logits = np.log(np.clip(truth, 1e-6, 1))
    values = {
        "good": logits + random.normal(0, 0.7, truth.shape),
        "overconfident": 4 * (logits + random.normal(0, 1.5, truth.shape)),
        "weak": 0.3 * logits + random.normal(0, 0.8, truth.shape),
        "useless": random.normal(0, 4, truth.shape),
    }[kind]
    return apply_temperature(np.exp(values - values.max(axis=1, keepdims=True)), 1.0)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["good", "overconfident", "weak", "useless"])
@pytest.mark.parametrize("n", [80, 300])
def test_a_stack_on_few_rows_is_not_worse_than_model_or_form(
    arena: tuple[Array, Array, NDArray[np.int64]], kind: str, n: int
) -> None:
    features, truth, labels = arena
    model, new = predict(kind, truth), slice(1500, None)
    losses: dict[str, list[float]] = {"model": [], "form": [], "stack": []}
    for start in range(0, 1500, 300):
        fitted = slice(start, start + n)
        by_form = baselines.predict_parts(features[fitted], labels[fitted], np.arange(n) % 5)
        temperature = fit_temperature(model[fitted], labels[fitted])
        scaled = apply_temperature(model[fitted], temperature)
        stack = fit_stack(scaled, by_form, labels[fitted], ONCE(n), np.arange(n))
        form = fit_form(features[fitted], labels[fitted])
        calibration = Calibration(temperature, stack, (form,), n)
        stacked = calibration.adjust([model[new]], features[new], ONCE(1500))["stack"]
        np.testing.assert_allclose(stacked.sum(axis=1), 1)
        for name, p in {
            "model": model[new],
            "form": form.predict_form(features[new]),
            "stack": stacked,
        }.items():
            losses[name].append(log_losses(p, labels[new]).mean())
    mean = {name: float(np.mean(values)) for name, values in losses.items()}
    assert mean["stack"] < min(mean["model"], mean["form"]) + NOISE


def test_a_stack_of_two_predictors_with_different_knowledge_beats_both(
    arena: tuple[Array, Array, NDArray[np.int64]],
) -> None:
    features, truth, labels = arena
    model, n = predict("weak", truth), 1000
    part = np.arange(n) % 5
    adjusted = adjust_parts(model[:n], labels[:n], part, np.arange(n), features[:n], None, ONCE(n))
    form = baselines.predict_parts(features[:n], labels[:n], part)
    for other in (model[:n], form):
        pair = paired_bootstrap(
            log_losses(adjusted["stack"], labels[:n]), log_losses(other, labels[:n]), np.arange(n)
        )
        assert pair.difference_ci is not None and pair.difference_ci[1] < 0


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("nested", [True, False])
def test_the_labels_of_a_part_do_not_change_its_own_predictions(
    arena: tuple[Array, Array, NDArray[np.int64]], parts: int, nested: bool
) -> None:
    features, truth, labels = (values[:200] for values in arena)
    model, part, cluster = predict("weak", truth), np.arange(200) % parts, np.arange(200)
    form = None if nested else np.roll(truth, 1, axis=0)

    def adjust(labels: NDArray[np.int64]) -> dict[str, Array]:
        return dict(adjust_parts(model, labels, part, cluster, features, form, ONCE(200)))

    before, after = adjust(labels), adjust(np.where(part == 0, (labels + 1) % 3, labels))
    for method in ("temperature", "stack"):
        np.testing.assert_array_equal(before[method][part == 0], after[method][part == 0])
        assert not np.allclose(before[method][part == 1], after[method][part == 1])


@pytest.mark.numeric
def test_swapped_responses_give_swapped_probabilities(
    arena: tuple[Array, Array, NDArray[np.int64]],
) -> None:
    _, truth, labels = (values[:200] for values in arena)
    model, form = predict("weak", truth), np.roll(truth, 1, axis=0)
    stack, swap = fit_stack(model, form, labels, BOTH(200), np.arange(200)), [1, 0, 2]
    np.testing.assert_allclose(
        stack.predict(stack_inputs(model, form, BOTH(200)))[:, swap],
        stack.predict(stack_inputs(model[:, swap], form[:, swap], BOTH(200))),
        atol=1e-3,  # the optimiser stops at a gradient of 1e-4
    )


@pytest.mark.numeric
@pytest.mark.parametrize(("bias", "least", "most"), [(0.0, -0.002, 0.002), (0.5, -0.05, -0.015)])
def test_a_preference_for_one_position_is_corrected_and_without_one_little_is_lost(
    arena: tuple[Array, Array, NDArray[np.int64]], bias: float, least: float, most: float
) -> None:
    _, truth, labels = arena
    model = predict("good", truth) * np.exp([bias, -bias, 0])
    model /= model.sum(axis=1, keepdims=True)
    form, fitted, new = np.full_like(model, 1 / 3), slice(1500), slice(1500, None)

    def loss(one_order: Array) -> float:
        stack = fit_stack(model[fitted], form[fitted], labels[fitted], one_order, np.arange(1500))
        stacked = stack.predict(stack_inputs(model[new], form[new], one_order))
        return float(log_losses(stacked, labels[new]).mean())

    assert least < loss(ONCE(1500)) - loss(BOTH(1500)) < most


def test_unlabelled_rows_are_predicted_and_change_nothing(
    arena: tuple[Array, Array, NDArray[np.int64]],
) -> None:
    features, truth, labels = (values[:120] for values in arena)
    model, part, cluster = predict("good", truth), np.arange(120) % 5, np.arange(120)
    unknown = np.arange(120) >= 100
    all_rows = adjust_parts(model, np.where(unknown, -1, labels), part, cluster, features, None, ONCE(120))
    first = adjust_parts(
        model[:100], labels[:100], part[:100], cluster[:100], features[:100], None, ONCE(100)
    )
    np.testing.assert_array_equal(all_rows["stack"][:100], first["stack"])
    np.testing.assert_allclose(all_rows["stack"].sum(axis=1), 1)


def test_rows_of_one_prompt_weigh_as_much_as_one_row(
    arena: tuple[Array, Array, NDArray[np.int64]],
) -> None:
    _, truth, labels = (values[:100] for values in arena)
    model, form = predict("weak", truth), np.roll(truth, 1, axis=0)
    alone = fit_stack(model, form, labels, ONCE(100), np.arange(100))
    repeated = [np.repeat(values, 3, axis=0) for values in (model, form, labels, ONCE(100))]
    of_prompts = fit_stack(*repeated, np.repeat(np.arange(100), 3))
    np.testing.assert_allclose(of_prompts.coefficients, alone.coefficients, atol=1e-3)
    of_rows = fit_stack(*repeated, np.arange(300))
    assert np.abs(np.array(of_rows.coefficients) - alone.coefficients).max() > 0.01


def test_outcomes_that_do_not_occur_keep_a_small_probability(
    arena: tuple[Array, Array, NDArray[np.int64]],
) -> None:
    features, truth, labels = (values[:40] for values in arena)
    part, cluster = np.arange(40) % 5, np.arange(40)
    for outcomes in (labels % 2, np.zeros(40, np.int64), np.full(40, 2)):
        stacked = adjust_parts(truth, outcomes, part, cluster, features, None, ONCE(40))["stack"]
        assert (stacked > 0).all() and np.isfinite(log_losses(stacked, outcomes)).all()
        np.testing.assert_allclose(stacked.sum(axis=1), 1)


def test_a_calibration_is_the_same_after_json(arena: tuple[Array, Array, NDArray[np.int64]]) -> None:
    features, truth, labels = (values[:60] for values in arena)
    form = fit_form(features, labels)
    calibration = Calibration(
        1.7, fit_stack(truth, form.predict_form(features), labels, ONCE(60), np.arange(60)), (form, form), 60
    )
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    for method, p in calibration.adjust([truth, truth[::-1]], features, ONCE(60)).items():
        np.testing.assert_array_equal(p, again.adjust([truth, truth[::-1]], features, ONCE(60))[method])


def test_one_part_is_not_enough(arena: tuple[Array, Array, NDArray[np.int64]]) -> None:
    features, truth, labels = (values[:9] for values in arena)
    with pytest.raises(ValueError, match="at least two parts"):
        adjust_parts(truth, labels, np.zeros(9, np.int64), np.arange(9), features, None, ONCE(9))


def test_a_stack_starts_at_the_geometric_mean_of_both_predictions(
    arena: tuple[Array, Array, NDArray[np.int64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, truth, labels = arena
    monkeypatch.setattr(stacking, "PENALTY", 1e9)
    monkeypatch.setattr(stacking, "POSITION_PENALTY", 1e9)
    model, form = predict("weak", truth), fit_form(features[:200], labels[:200]).predict_form(features)
    stack = fit_stack(model[:50], form[:50], labels[:50], ONCE(50), np.arange(50))
    mean = np.sqrt(model * form)
    expected = mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(stack.predict(stack_inputs(model, form, ONCE(3000))), expected, atol=1e-6)


def test_a_stack_minimises_the_documented_loss(arena: tuple[Array, Array, NDArray[np.int64]]) -> None:
    features, truth, labels = (each[:400] for each in arena)
    model = predict("overconfident", truth)
    form = fit_form(features[:200], labels[:200]).predict_form(features)
    prompts = np.arange(400) // 2
    inputs, start = stack_inputs(model, form, ONCE(400)), np.array([0.5, 0.5, 0.5, 0.5, 0, 0])
    stack = fit_stack(model, form, labels, ONCE(400), prompts)

    def loss(weights: Array) -> float:
        a, b, c, d, intercept, position = weights
        changed = dataclasses.replace(
            stack,
            coefficients=((a, 0, b, 0, position), (-a, 0, -b, 0, -position), (0, c, 0, d, 0)),
            intercept=(0, 0, intercept),
        )
        penalty = np.array([PENALTY] * 5 + [POSITION_PENALTY]) @ (weights - start) ** 2
        return float(penalty + 200 * log_losses(changed.predict(inputs), labels).mean())

    (a, _, b, _, position), _, (_, c, _, d, _) = stack.coefficients
    fitted = np.array([a, b, c, d, stack.intercept[2], position])
    assert np.abs(fitted - start).min() > 1e-4  # the labels moved every weight
    for direction in np.eye(6):
        assert loss(fitted) < min(loss(fitted + 0.02 * direction), loss(fitted - 0.02 * direction))


@pytest.mark.parametrize("parts", [2, 3])
def test_rows_are_divided_at_random_only_where_no_other_part_is_left(
    arena: tuple[Array, Array, NDArray[np.int64]], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, truth, labels = (each[:60] for each in arena)
    drawing = Mock(wraps=stacking.random_parts)
    monkeypatch.setattr(stacking, "random_parts", drawing)
    rows = np.arange(60)
    adjust_parts(predict("weak", truth), labels, rows % parts, rows, features, None, ONCE(60))
    assert [len(call.args[0]) for call in drawing.call_args_list] == ([30, 30] if parts == 2 else [])
