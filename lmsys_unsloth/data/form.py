"""Form of the responses, without their content: features, a logistic regression on them, and its offset."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import UNLABELLED, Comparison, label_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURES = (
    "length", "list items", "code blocks", "bold or headings", "similarity to the prompt",
    "length gap", "list gap", "code gap", "similarity of the answers", "identical answers", "turns",
    "prompt length",
)  # fmt: skip
"""Inputs of the regression, see :func:`form_features`."""

DIFFERENCES = 5
"""The first features are differences, A minus B; swapping the responses does not change the others."""

OFFSET_FILE = "form_offset.json"
"""Name of the file with a stored offset, in the folder of the adapters."""

PARTS = 5
"""Number of parts of the training rows, by prompt, for offsets that know no label of their own part."""

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


@dataclass(frozen=True)
class FormOffset:
    """Log-probabilities of a regression on form that are added to a model's logits.

    The model then learns what the form does not say. In generalised linear models such a term is called an
    offset (McCullagh and Nelder 1989), in XGBoost ``base_margin``. Swapping the responses swaps the offset.

    It is added in the second half of the training and after it: learning the form teaches a model to compare
    the responses. With the offset from the first step on, it learns less of the content (docs/study.md).
    """

    regressions: Sequence[Regression]
    """Fitted on all training rows; averaged models have several, whose log-probabilities are averaged."""
    held_out: Sequence[Regression] = ()
    """``held_out[k]`` was fitted on the training rows that are not in part ``k``; empty once stored."""

    @classmethod
    def fit(cls, rows: Sequence[Comparison]) -> FormOffset:
        """Fit on the labelled ones of these rows, each in both orders of the responses."""
        matrix, labels, part = form_features(rows), label_array(rows), np.array([_part(row) for row in rows])
        fitted = [_fit_both_orders(matrix, labels)]
        held_out = [_fit_both_orders(matrix[part != k], labels[part != k]) for k in range(PARTS)]
        return cls(fitted, held_out)

    def logits(self, rows: Sequence[Comparison]) -> Floats:
        """Offsets ``[rows, 3]`` of rows that the regression was not fitted on."""
        matrix = form_features(rows)
        found = [np.log(regression.predict(matrix)) for regression in self.regressions]
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)

    def held_out_logits(self, rows: Sequence[Comparison]) -> Floats:
        """Offsets ``[rows, 3]`` of training rows, by the regression that was not fitted on their prompts."""
        matrix, part = form_features(rows), np.array([_part(row) for row in rows])
        found = np.empty((len(rows), 3))
        for k in np.unique(part):
            found[part == k] = np.log(self.held_out[k].predict(matrix[part == k]))
        return found

    def save(self, folder: Path) -> None:
        """Write the numbers that predict new rows into ``folder``."""
        write_json(folder / OFFSET_FILE, [dataclasses.asdict(each) for each in self.regressions])

    @classmethod
    def load(cls, folder: Path) -> FormOffset:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = folder / OFFSET_FILE
        try:
            found = cls([Regression(**each) for each in json.loads(file.read_text(encoding="utf-8"))])
            if not found.regressions:
                raise ValueError("it is empty")
            if not np.isfinite(found.logits([Comparison("", ("",), ("",), ("",))])).all():
                raise ValueError("its numbers are not finite")
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"{file}: can't be read ({error}), but head.offset=form needs it.\n"
                "  Restore it, or name a run that was trained with head.offset=form."
            ) from None
        return found


def _part(row: Comparison) -> int:
    """Part of the row's prompt; equal for rows with the same one, in every process."""
    return zlib.crc32(row.prompt_text.encode()) % PARTS


def _fit_both_orders(matrix: Floats, labels: Ints) -> Regression:
    """Fit rows together with their swapped copies, so that the regression has no position bias."""
    swapped = matrix * np.where(np.arange(len(FEATURES)) < DIFFERENCES, -1.0, 1.0)
    exchanged = np.where(labels == UNLABELLED, labels, np.array([1, 0, 2])[labels])
    return fit_form(np.concatenate([matrix, swapped]), np.concatenate([labels, exchanged]))


def class_prior(labels: NDArray[Any]) -> Floats:
    """Class shares ``[3]`` of training labels; every count is increased by one if a class never occurs.

    >>> class_prior(np.array([0, 0, 1, 2])).tolist()
    [0.5, 0.25, 0.25]
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=3).astype(np.float64)
    if (counts == 0).any():
        counts += 1
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def form_features(rows: Sequence[Comparison]) -> Floats:
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
