"""What can be said without a language model: logistic regression on the look of the two answers.

An LLM that loses to this has learnt nothing about content.
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
from lmsys_unsloth.evaluate.metrics import class_prior

FEATURES = (
    "length",
    "list items",
    "code blocks",
    "bold or headings",
    "similarity to the prompt",
    "length gap",
    "list gap",
    "code gap",
    "similarity of the answers",
    "identical answers",
    "turns",
    "prompt length",
)
"""The first five are A minus B; the others are the same when the bots change places."""

REGULARISATION = 0.03
"""Inverse strength ``C``: small, so that eighty rows do not overfit twelve features."""

COMPARED_CHARACTERS = 2000
"""Similarity looks at the start of each text only; later words change it little and take time."""

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]", re.MULTILINE)
_EMPHASIS = ("**", "\n# ", "\n## ", "\n### ")
_WORD = re.compile(r"\w+")


def logistic_regression(train: Sequence[Comparison], validation: Sequence[Comparison]) -> Floats:
    """Probabilities [len(validation), 3] of a logistic regression fitted on the labelled training rows.

    Training rows of one outcome only (or none at all) give their class prior for every row.
    """
    known = [row for row in train if row.label is not None]
    return _fitted(features(known), _labels(known), features(validation))


def cross_validated(rows: Sequence[Comparison], folds: Sequence[int] | NDArray[Any]) -> Floats:
    """Probabilities [rows, 3] where each fold's come from a regression fitted on all other folds."""
    of_row = np.asarray(folds)
    labelled = np.array([row.label is not None for row in rows], dtype=bool)
    matrix = features(rows)
    probabilities = np.empty((len(rows), 3))
    for fold in np.unique(of_row):
        train = labelled & (of_row != fold)
        labels = _labels([rows[k] for k in np.flatnonzero(train).tolist()])
        probabilities[of_row == fold] = _fitted(matrix[train], labels, matrix[of_row == fold])
    return probabilities


def _labels(rows: Sequence[Comparison]) -> Ints:
    return np.array([row.label for row in rows], dtype=np.int64)


def _fitted(train: Floats, labels: Ints, validation: Floats) -> Floats:
    """Probabilities [rows, 3] for one feature matrix from a regression on another."""
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
    # An outcome without training rows keeps its share of the prior; the others divide the rest.
    probabilities[:, seen] = model.predict_proba(validation) * prior[seen].sum()
    return probabilities


def features(rows: Sequence[Comparison]) -> Floats:
    """Matrix [rows, features] with the columns of :data:`FEATURES`."""
    return np.array([_features(row) for row in rows], dtype=np.float64).reshape(len(rows), len(FEATURES))


def _features(row: Comparison) -> tuple[float, ...]:
    a, b = "\n".join(row.responses_a), "\n".join(row.responses_b)
    prompt = "\n".join(row.prompts)
    words_a, words_b, words = _words(a), _words(b), _words(prompt)
    length_a, list_a, code_a, bold_a = _look(a)
    length_b, list_b, code_b, bold_b = _look(b)
    return (
        length_a - length_b,
        list_a - list_b,
        code_a - code_b,
        bold_a - bold_b,
        _similarity(words_a, words) - _similarity(words_b, words),
        abs(length_a - length_b),
        abs(list_a - list_b),
        abs(code_a - code_b),
        _similarity(words_a, words_b),
        float(a == b),
        math.log1p(len(row.prompts)),
        math.log1p(len(prompt)),
    )


def _look(text: str) -> tuple[float, float, float, float]:
    """Characters, list items, code fences and emphasis marks of an answer, each as log(1 + count)."""
    emphasis = sum(map(f"\n{text}".count, _EMPHASIS))
    counts = (len(text), len(_LIST_ITEM.findall(text)), text.count("```"), emphasis)
    length, items, fences, marks = (math.log1p(count) for count in counts)
    return length, items, fences, marks


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text[:COMPARED_CHARACTERS].lower()))


def _similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words; two empty texts are alike.

    >>> _similarity(frozenset({"a", "b"}), frozenset({"b"}))
    0.5
    """
    union = len(first | second)
    return len(first & second) / union if union else 1.0
