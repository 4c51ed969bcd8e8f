"""Baselines without a language model: class shares, and logistic regression on the form of the responses.

A language model that loses to the regression has learnt nothing useful about content.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.calibration import Floats, Ints
from lmsys_unsloth.evaluate.predictions import label_array

FEATURES = (
    "length", "list items", "code blocks", "bold or headings", "similarity to the prompt",
    "length gap", "list gap", "code gap", "similarity of the answers", "identical answers", "turns",
    "prompt length",
)  # fmt: skip
"""The first five are differences, A minus B; the others do not change when the responses are swapped."""

REGULARISATION = 0.03
"""Inverse regularisation strength ``C``: small, so that eighty rows do not overfit twelve features."""

COMPARED_CHARACTERS = 2000
"""Number of characters at the start of each text that similarity uses; later ones change it little."""

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]", re.MULTILINE)
_EMPHASIS = ("**", "\n# ", "\n## ", "\n### ")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Regression:
    """A fitted multinomial logistic regression as plain numbers, which JSON can hold."""

    inputs: Sequence[str]
    """Names of the inputs."""
    mean: Sequence[float]
    """``[inputs]``, subtracted from the inputs."""
    scale: Sequence[float]
    """``[inputs]``, by which the centred inputs are divided."""
    outcomes: Sequence[int]
    """Outcomes that occurred in the fitted rows; empty when fewer than two did."""
    coefficients: Sequence[Sequence[float]]
    """``[outcomes, inputs]``."""
    intercept: Sequence[float]
    """``[outcomes]``."""
    prior: Sequence[float]
    """``[3]`` class shares of the fitted rows; an outcome that did not occur always gets its share."""

    def predict(self, inputs: Floats) -> Floats:
        """Probabilities ``[n, 3]`` of rows with inputs ``[n, inputs]``."""
        prior, seen = np.array(self.prior), list(self.outcomes)
        probabilities = np.tile(prior, (len(inputs), 1))
        if seen:
            scaled = (inputs - np.array(self.mean)) / np.array(self.scale)
            logits = scaled @ np.array(self.coefficients).T + np.array(self.intercept)
            probabilities[:, seen] = softmax(logits, axis=1) * prior[seen].sum()
        return probabilities


def fit_form(matrix: Floats, labels: Ints) -> Regression:
    """Fit the labels ``[n]`` by features ``[n, features]``; unlabelled rows are left out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    matrix, labels = matrix[labels >= 0], labels[labels >= 0]
    prior, seen = class_prior(labels).tolist(), np.unique(labels).tolist()
    if len(seen) < 2:
        zeros = [0.0] * len(FEATURES)
        return Regression(FEATURES, zeros, [1.0] * len(FEATURES), (), (), (), prior)
    scaler = StandardScaler().fit(matrix)
    model = LogisticRegression(C=REGULARISATION, max_iter=1000).fit(scaler.transform(matrix), labels)
    coefficients, intercept = model.coef_, model.intercept_
    if len(seen) == 2:  # scikit-learn gives the logit of the second outcome only
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([[0.0], intercept])
    return Regression(
        FEATURES, scaler.mean_.tolist(), scaler.scale_.tolist(), seen, coefficients.tolist(),
        intercept.tolist(), prior,
    )  # fmt: skip


def logistic_regression(train: Sequence[Comparison], validation: Sequence[Comparison]) -> Floats:
    """Predict the validation rows ``[validation, 3]`` with a regression fitted on labelled training rows.

    Every row gets the class prior when the training rows have a single outcome or there are none.
    """
    return fit_form(features(train), label_array(train)).predict(features(validation))


def cross_validate(rows: Sequence[Comparison], folds: Sequence[int] | NDArray[Any]) -> Floats:
    """Predict each fold ``[rows, 3]`` with a logistic regression fitted on all other folds."""
    return predict_parts(features(rows), label_array(rows), np.asarray(folds))


def predict_parts(matrix: Floats, labels: Ints, part: NDArray[Any]) -> Floats:
    """Predict each part of the rows ``[n, 3]`` with the features and labels of all other parts.

    ``part`` ``[n]`` is the number of each row's part.
    """
    probabilities = np.empty((len(labels), 3))
    for held_out in np.unique(part):
        inside = part == held_out
        probabilities[inside] = fit_form(matrix[~inside], labels[~inside]).predict(matrix[inside])
    return probabilities


def class_prior(labels: NDArray[Any]) -> Floats:
    """Class shares ``[3]`` of training labels; every count is increased by one if a class never occurs.

    >>> class_prior(np.array([0, 0, 1, 2])).tolist()
    [0.5, 0.25, 0.25]
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=3).astype(np.float64)
    if (counts == 0).any():
        counts += 1
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def features(rows: Sequence[Comparison]) -> Floats:
    """Compute the matrix ``[rows, features]`` with the columns of :data:`FEATURES`."""
    return np.array([_features(row) for row in rows], dtype=np.float64).reshape(len(rows), len(FEATURES))


def _features(row: Comparison) -> tuple[float, ...]:
    a, b, prompt = ("\n".join(texts) for texts in (row.responses_a, row.responses_b, row.prompts))
    words_a, words_b, words = _words(a), _words(b), _words(prompt)
    gaps = [in_a - in_b for in_a, in_b in zip(_form(a), _form(b), strict=True)]
    return (
        *gaps,
        _similarity(words_a, words) - _similarity(words_b, words),
        *(abs(gap) for gap in gaps[:3]),
        _similarity(words_a, words_b),
        float(a == b),
        math.log1p(len(row.prompts)),
        math.log1p(len(prompt)),
    )


def _form(text: str) -> list[float]:
    """Characters, list items, code fences and emphasis marks of a response, each as log(1 + count)."""
    emphasis = sum(map(f"\n{text}".count, _EMPHASIS))
    counts = (len(text), len(_LIST_ITEM.findall(text)), text.count("```"), emphasis)
    return [math.log1p(count) for count in counts]


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text[:COMPARED_CHARACTERS].lower()))


def _similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words; 1 for two empty texts.

    >>> _similarity(frozenset({"a", "b"}), frozenset({"b"}))
    0.5
    """
    union = len(first | second)
    return len(first & second) / union if union else 1.0
