"""Temperature and stack fitted on labelled predictions: out of fold, or once for later predictions.

The stack is a multinomial logistic regression on the log-probabilities of two predictors: the model, with its
temperature, and the regression on the form of the responses (:mod:`~lmsys_unsloth.data.form`).
Stacking in this sense: Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1. Probabilities are ``[n, 3]`` in
``comparison.LABELS`` order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from lmsys_unsloth.core.arrays import Floats, Ints
from lmsys_unsloth.data.form.regression import Regression, class_prior, fit_form
from lmsys_unsloth.evaluate.baselines import predict_parts
from lmsys_unsloth.evaluate.bootstrap import random_parts
from lmsys_unsloth.evaluate.calibration import EPSILON, apply_temperature, fit_temperature

Method = Literal["none", "temperature", "stack"]
"""How predictions are adjusted; ``none``: they are the model's own."""

INPUTS = ("worth, model", "tie, model", "worth, form", "tie, form", "one order")
"""Inputs of the stack: the two contrasts of each predictor's log-probabilities, and whether the model saw
the responses in the given order only."""

PENALTY = 8.0
"""Penalty of a squared deviation of a weight from its start, in units of log loss summed over prompts."""

POSITION_PENALTY = 32.0
"""The same for the weight of ``one order``, which corrects the position bias of the model. As a prior, it is
a standard deviation of 1/8. On simulated rows whose model has no position bias, fitting this weight costs
less than 0.001; it pays from a bias of about 0.1 in half the log-odds of A against B."""


@dataclass(frozen=True)
class Calibration:
    """Everything fitted on a set of predictions that later predictions of other rows are adjusted by."""

    temperature: float
    stack: Regression
    """From :data:`INPUTS`."""
    form: Sequence[Regression]
    """Regressions on the form of the responses, one for each run; their predictions are averaged."""
    rows: int
    """Number of rows that temperature and stack were fitted on."""

    def adjust(self, members: Sequence[Floats], features: Floats, one_order: Floats) -> dict[Method, Floats]:
        """Average the probabilities ``[n, 3]`` of several models, each with the temperature, and stack them.

        Args:
            members: probabilities of each model.
            features: ``[n, features]`` of ``form_features``.
            one_order: ``[n]`` share of the models that saw the responses in the given order only.
        """
        calibrated = np.mean([apply_temperature(p, self.temperature) for p in members], axis=0)
        form = np.mean([regression.predict_form(features) for regression in self.form], axis=0)
        return {
            "temperature": calibrated,
            "stack": self.stack.predict(stack_inputs(calibrated, form, one_order)),
        }

    def to_json(self) -> dict[str, Any]:
        """All numbers, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_json`."""
        form = [Regression(**regression) for regression in values["form"]]
        return cls(values["temperature"], Regression(**values["stack"]), form, values["rows"])


def stack_inputs(calibrated: Floats, form: Floats, one_order: Floats) -> Floats:
    """Inputs ``[n, 5]`` of the stack: half the log-odds of A against B, and the log-odds of a tie, twice.

    >>> stack_inputs(np.array([[0.5, 0.25, 0.25]]), np.full((1, 3), 1 / 3), np.ones(1)).round(3).tolist()
    [[0.347, -0.347, 0.0, 0.0, 1.0]]
    """
    return np.column_stack([*_contrasts(calibrated), *_contrasts(form), one_order])


def fit_stack(calibrated: Floats, form: Floats, labels: Ints, one_order: Floats, cluster: Ints) -> Regression:
    """Fit the stack: weights of both predictors for worth and for ties, and an intercept for each.

    With weights of 1/2 and no intercepts it is the normalised geometric mean of both predictions. From there
    it moves as far as the labels outweigh the penalty, so that few rows do not lead to extreme weights. Rows
    of one prompt together weigh as much as one row, because they are correlated.

    The intercept for worth holds for rows that the model saw in one order only: it corrects a preference for
    the response shown first, or second. Where both orders were averaged there is none to correct, and the
    two responses are treated alike: swapping them swaps the prediction.

    On runs of the simulated arena this had a lower log loss than a regression whose weights are
    drawn towards zero; with 35 prompts of real comparisons that regression was worse than either predictor.

    Args:
        calibrated: ``[n, 3]`` of the model with its temperature.
        form: ``[n, 3]`` of the regression on form.
        labels: ``[n]``, all known.
        one_order: ``[n]``, 1 where the model saw the given order only, 0 where both orders were averaged.
        cluster: ``[n]`` number of each row's prompt.
    """
    worth_model, tie_model, worth_form, tie_form, first = stack_inputs(calibrated, form, one_order).T
    start = np.array([0.5, 0.5, 0.5, 0.5, 0.0, 0.0])
    penalty = np.array([PENALTY] * 5 + [POSITION_PENALTY])
    prompts = len(np.unique(cluster))

    def loss(weights: Floats) -> float:
        worth = weights[0] * worth_model + weights[1] * worth_form + weights[5] * first
        tie = weights[2] * tie_model + weights[3] * tie_form + weights[4]
        chosen = log_softmax(np.column_stack([worth, -worth, tie]), axis=1)[np.arange(len(labels)), labels]
        return float((penalty * (weights - start) ** 2).sum() - prompts * chosen.mean())

    a, b, c, d, intercept, position = minimize(loss, start, method="L-BFGS-B").x.tolist()
    coefficients = ((a, 0.0, b, 0.0, position), (-a, 0.0, -b, 0.0, -position), (0.0, c, 0.0, d, 0.0))
    zeros, ones = (0.0,) * len(INPUTS), (1.0,) * len(INPUTS)
    prior = class_prior(labels).tolist()
    return Regression(INPUTS, zeros, ones, (0, 1, 2), coefficients, (0.0, 0.0, intercept), prior)


def adjust_parts(
    probabilities: Floats,
    labels: Ints,
    part: Ints,
    cluster: Ints,
    features: Floats,
    form: Floats | None,
    one_order: Floats,
) -> dict[Method, Floats]:
    """Adjust each part with temperature and stack fitted on the labelled rows of all other parts.

    No adjusted probability depends on a label of its own part.

    Args:
        probabilities: ``[n, 3]`` as the model gave them.
        labels: ``[n]``, negative where unknown.
        part: ``[n]`` number of each row's part; rows of one prompt must share a part.
        cluster: ``[n]`` number of each row's prompt.
        features: ``[n, features]`` of ``form_features``.
        form: ``[n, 3]`` predictions of a regression on form fitted on rows other than these. None: it is
            fitted on the other parts too, and on all but two parts for the rows that the stack is fitted on.
        one_order: ``[n]``, 1 where the model saw the given order of the responses only, 0 where both.

    Returns:
        ``[n, 3]`` for each method.

    Raises:
        ValueError: fewer than two parts have labelled rows.
    """
    if len(np.unique(part[labels >= 0])) < 2:
        raise ValueError("adjusting predictions out of fold takes labelled rows in at least two parts")
    calibrated, stacked = np.empty_like(probabilities), np.empty_like(probabilities)
    for held_out in np.unique(part):
        inside = part == held_out
        others = ~inside & (labels >= 0)
        known = labels[others]
        temperature = fit_temperature(probabilities[others], known)
        calibrated[inside] = apply_temperature(probabilities[inside], temperature)
        if form is None:
            remaining = part[others]
            if len(np.unique(remaining)) < 2:
                remaining = random_parts(cluster[others])
            form_others = predict_parts(features[others], known, remaining)
            form_inside = fit_form(features[others], known).predict_form(features[inside])
        else:
            form_others, form_inside = form[others], form[inside]
        scaled = apply_temperature(probabilities[others], temperature)
        stack = fit_stack(scaled, form_others, known, one_order[others], cluster[others])
        stacked[inside] = stack.predict(stack_inputs(calibrated[inside], form_inside, one_order[inside]))
    return {"temperature": calibrated, "stack": stacked}


def _contrasts(probabilities: Floats) -> tuple[Floats, Floats]:
    a, b, tie = np.log(np.clip(probabilities, EPSILON, 1.0)).T
    return (a - b) / 2, tie - (a + b) / 2
