"""Baselines without a language model: class shares, and logistic regression on the form of the responses.

A language model that loses to the regression has learnt nothing useful about content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison, label_array
from lmsys_unsloth.data.form import fit_form, form_features
from lmsys_unsloth.evaluate.calibration import Floats, Ints


def logistic_regression(train: Sequence[Comparison], validation: Sequence[Comparison]) -> Floats:
    """Predict the validation rows ``[validation, 3]`` with a regression fitted on labelled training rows.

    Every row gets the class prior when the training rows have a single outcome or there are none.
    """
    return fit_form(form_features(train), label_array(train)).predict(form_features(validation))


def cross_validate(rows: Sequence[Comparison], folds: Sequence[int] | NDArray[Any]) -> Floats:
    """Predict each fold ``[rows, 3]`` with a logistic regression fitted on all other folds."""
    return predict_parts(form_features(rows), label_array(rows), np.asarray(folds))


def predict_parts(matrix: Floats, labels: Ints, part: NDArray[Any]) -> Floats:
    """Predict each part of the rows ``[n, 3]`` with the features and labels of all other parts.

    ``part`` ``[n]`` is the number of each row's part.
    """
    probabilities = np.empty((len(labels), 3))
    for held_out in np.unique(part):
        inside = part == held_out
        probabilities[inside] = fit_form(matrix[~inside], labels[~inside]).predict(matrix[inside])
    return probabilities
