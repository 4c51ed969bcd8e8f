"""Baselines without a language model: class shares, and logistic regression on the form of the responses.

A language model that loses to the regression has learnt nothing useful about content.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def logistic_regression(train: Sequence[Comparison], validation: Sequence[Comparison]) -> Floats:
    """Predict the validation rows ``[validation, 3]`` with a regression fitted on labelled training rows.

    Every row gets the class prior when the training rows have a single outcome or there are none.
    """
    labels = label_array(train)
    return _fit_and_predict(features(train)[labels >= 0], labels[labels >= 0], features(validation))


def cross_validate(rows: Sequence[Comparison], folds: Sequence[int] | NDArray[Any]) -> Floats:
    """Predict each fold ``[rows, 3]`` with a logistic regression fitted on all other folds."""
    folds, labels, matrix = np.asarray(folds), label_array(rows), features(rows)
    probabilities = np.empty((len(rows), 3))
    for fold in np.unique(folds):
        train, held_out = (folds != fold) & (labels >= 0), folds == fold
        probabilities[held_out] = _fit_and_predict(matrix[train], labels[train], matrix[held_out])
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


def _fit_and_predict(train: Floats, labels: Ints, validation: Floats) -> Floats:
    """Probabilities ``[rows, 3]`` of a regression on features ``[rows, features]``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    prior = class_prior(labels)
    probabilities = np.tile(prior, (len(validation), 1))
    seen = np.unique(labels)
    if len(seen) < 2 or not len(validation):
        return probabilities
    model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1000))
    model.fit(train, labels)
    # An outcome without training rows keeps its share of the prior; the others share the rest.
    probabilities[:, seen] = model.predict_proba(validation) * prior[seen].sum()
    return probabilities


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
