"""Multinomial logistic regression on the form of the responses, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lmsys_unsloth.core.arrays import Floats, Ints
from lmsys_unsloth.data.comparison import UNLABELLED
from lmsys_unsloth.data.form.features import FEATURES, MEASURES, swapped_features

FORM_STRENGTH = 0.1
"""Inverse strength ``C`` of the penalty of :func:`fit_form`: so small that eighty rows do not overfit."""

MEAN_WEIGHT = 0.4
"""Factor of the inputs "mean …" of :func:`fit_form`: a coefficient costs 1 / 0.4² of another's penalty."""

LEAST_DEVIATION = 1e-9
"""Standard deviation of an input below which all its values are taken to be the same, but for rounding."""


@dataclass(frozen=True)
class Regression:
    """A fitted multinomial logistic regression as plain numbers, which JSON can hold."""

    inputs: Sequence[str]
    """Names of the inputs."""
    mean: Sequence[float]
    """``[inputs]``, subtracted from the inputs. This and the next four are empty if nothing was fitted."""
    scale: Sequence[float]
    """``[inputs]``, by which the centred inputs are divided."""
    outcomes: Sequence[int]
    """Outcomes that occurred in the fitted rows, at least two."""
    coefficients: Sequence[Sequence[float]]
    """``[outcomes, inputs]``."""
    intercept: Sequence[float]
    """``[outcomes]``."""
    prior: Sequence[float]
    """``[3]`` class shares of the fitted rows; an outcome that did not occur always gets its share."""
    bounded: bool = False
    """Whether the scaled inputs go through ``tanh``, so that an extreme one counts as a large one."""

    def predict(self, inputs: Floats) -> Floats:
        """Probabilities ``[n, 3]`` of rows with inputs ``[n, inputs]``."""
        prior, seen = np.array(self.prior), list(self.outcomes)
        probabilities = np.tile(prior, (len(inputs), 1))
        if seen:
            scaled = (inputs - np.array(self.mean)) / np.array(self.scale)
            scaled = np.tanh(scaled) if self.bounded else scaled
            logits = scaled @ np.array(self.coefficients).T + np.array(self.intercept)
            probabilities[:, seen] = softmax(logits, axis=1) * prior[seen].sum()
        return probabilities

    def predict_form(self, features: Floats) -> Floats:
        """Probabilities ``[n, 3]`` from all features ``[n, features]``, of which earlier versions used some.

        Raises:
            ValueError: the regression has an input that is not in FEATURES.
        """
        if unknown := [name for name in self.inputs if name not in FEATURES]:
            raise ValueError(f"unknown inputs: {', '.join(unknown)}")
        return self.predict(features[:, [FEATURES.index(name) for name in self.inputs]])


def fit_form(features: Floats, labels: Ints) -> Regression:
    """Fit the labels ``[n]`` by all features ``[n, features]``; unlabelled rows are left out.

    Each row is fitted in both orders of the responses: swapping them swaps the prediction. Inputs are
    bounded, because a response ten times as long is not ten times as good.
    """
    features, labels = features[labels != UNLABELLED], labels[labels != UNLABELLED]
    prior = class_prior(labels)
    weight = np.ones(len(FEATURES))
    weight[-len(MEASURES) :] = MEAN_WEIGHT
    return fit_regression(
        FEATURES,
        np.concatenate([features, swapped_features(features)]),
        np.concatenate([labels, np.array([1, 0, 2])[labels]]),
        prior=(prior + prior[[1, 0, 2]]) / 2,
        strength=FORM_STRENGTH,
        bounded=True,
        weight=weight,
    )


def fit_regression(
    names: Sequence[str],
    inputs: Floats,
    labels: Ints,
    *,
    prior: Floats,
    strength: float,
    bounded: bool = False,
    weight: Floats | None = None,
) -> Regression:
    """Fit a regression with scikit-learn.

    Args:
        names: of the inputs.
        inputs: ``[n, inputs]``; each is scaled to mean 0 and standard deviation 1.
        labels: ``[n]``, all known.
        prior: ``[3]``, predicted for every row if fewer than two outcomes occur.
        strength: ``C``, inverse strength of the penalty of squared coefficients.
        bounded: whether scaled inputs go through ``tanh``.
        weight: ``[inputs]`` factors of the scaled inputs; the penalty of a coefficient is that of 1 / factor.
    """
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(labels).tolist()
    if len(seen) < 2:
        return Regression(names, (), (), (), (), (), prior.tolist(), bounded)
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale < LEAST_DEVIATION] = 1.0
    scaled = (inputs - mean) / scale
    factor = np.ones(len(names)) if weight is None else weight
    model = LogisticRegression(C=strength, max_iter=1000).fit(
        (np.tanh(scaled) if bounded else scaled) * factor, labels
    )
    coefficients, intercept = model.coef_ * factor, model.intercept_
    if len(seen) == 2:  # scikit-learn gives the logit of the second outcome only
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([[0.0], intercept])
    return Regression(
        names, mean.tolist(), scale.tolist(), seen, coefficients.tolist(), intercept.tolist(), prior.tolist(),
        bounded,
    )  # fmt: skip


def class_prior(labels: NDArray[Any]) -> Floats:
    """Class shares ``[3]`` of training labels; every count is increased by one if a class never occurs.

    >>> class_prior(np.array([0, 0, 1, 2])).tolist()
    [0.5, 0.25, 0.25]
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=3).astype(np.float64)
    if (counts == 0).any():
        counts += 1
    return np.asarray(counts / counts.sum(), dtype=np.float64)
