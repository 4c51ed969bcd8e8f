"""Baseline without a language model: logistic regression on twelve features of the responses' form.

It has a fixed definition, so that results can be compared across versions and with published ones. A language
model that loses to it has learnt nothing useful about content. The regression that ``head.offset`` and
``eval.stack`` use, :func:`~lmsys_unsloth.data.form.regression.fit_form`, has more features and is stronger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.arrays import Floats, Ints
from lmsys_unsloth.data.comparison import UNLABELLED
from lmsys_unsloth.data.form.features import COMMON, FEATURES, MEASURES
from lmsys_unsloth.data.form.regression import Regression, class_prior, fit_form, fit_regression

INPUTS = (*MEASURES[:5], *COMMON)
"""Features of the baseline: lengths, list items, code, emphasis, similarities, turns."""

STRENGTH = 0.03
"""Inverse strength ``C`` of the penalty: so small that eighty rows do not overfit twelve features."""


def fit_baseline(features: Floats, labels: Ints) -> Regression:
    """Fit the labels ``[n]`` by :data:`INPUTS` of ``[n, features]``; unlabelled rows are left out.

    If all labels are equal, or there are none, every row is predicted to have the class prior.
    """
    known = labels != UNLABELLED
    inputs = features[known][:, [FEATURES.index(name) for name in INPUTS]]
    return fit_regression(INPUTS, inputs, labels[known], prior=class_prior(labels[known]), strength=STRENGTH)


def predict_parts(
    features: Floats, labels: Ints, part: NDArray[Any], fit: Callable[[Floats, Ints], Regression] = fit_form
) -> Floats:
    """Predict each part of the rows ``[n, 3]`` with the features and labels of all other parts.

    ``part`` ``[n]`` is the number of each row's part.
    """
    probabilities = np.empty((len(labels), 3))
    for held_out in np.unique(part):
        inside = part == held_out
        probabilities[inside] = fit(features[~inside], labels[~inside]).predict_form(features[inside])
    return probabilities
