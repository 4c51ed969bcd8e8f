"""The regression on form as an offset of a model's logits: fitted, held out, stored."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmsys_unsloth.core.arrays import Floats
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, label_array
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import Regression, fit_form

OFFSET_FILE = "form_offset.json"
"""Name of the file with a stored offset, in the folder of the adapters."""

PARTS = 5
"""Number of parts of the training rows, by prompt, for offsets that know no label of their own part."""

HALF_ROWS = 600
"""Number of training rows with which a model's logits count half, see :func:`logit_scale`."""


@dataclass(frozen=True)
class FormOffset:
    """Log-probabilities of a regression on form that are added to a model's logits.

    The model then learns what the form does not say. In generalised linear models such a term is called an
    offset (McCullagh and Nelder 1989), in XGBoost ``base_margin``. Swapping the responses swaps the offset.

    It is added in the second half of the training and after it: learning the form teaches a model to compare
    the responses. With the offset from the first step on, it learns less of the content (docs/study.md).

    In predictions the model's logits are multiplied by :attr:`logit_scale` before: what few rows have taught
    it is uncertain, so the prediction is drawn to that of the regression.
    """

    regressions: Sequence[Regression]
    """Fitted on all training rows; averaged models have several, whose log-probabilities are averaged."""
    logit_scale: float
    """Factor of the model's logits in predictions, from 0 to 1."""
    held_out: Sequence[Regression] = ()
    """``held_out[k]`` was fitted on the training rows that are not in part ``k``; empty once stored."""

    @classmethod
    def fit(cls, rows: Sequence[Comparison], earlier_rows: int = 0) -> FormOffset:
        """Fit on the labelled ones of these rows, each in both orders of the responses.

        Args:
            rows: those that the model is trained on.
            earlier_rows: number of rows that it was trained on before.
        """
        matrix, labels, part = form_features(rows), label_array(rows), np.array([_part(row) for row in rows])
        fitted = [fit_form(matrix, labels)]
        held_out = [fit_form(matrix[part != k], labels[part != k]) for k in range(PARTS)]
        return cls(fitted, logit_scale(len(rows) + earlier_rows), held_out)

    @classmethod
    def average(cls, offsets: Sequence[FormOffset]) -> FormOffset:
        """The offset of a model with the mean of several models' weights: the means of theirs."""
        regressions = [each for offset in offsets for each in offset.regressions]
        return cls(regressions, sum(each.logit_scale for each in offsets) / len(offsets))

    def logits(self, rows: Sequence[Comparison]) -> Floats:
        """Offsets ``[rows, 3]`` of rows that the regression was not fitted on."""
        matrix = form_features(rows)
        found = [np.log(regression.predict_form(matrix)) for regression in self.regressions]
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)

    def held_out_logits(self, rows: Sequence[Comparison]) -> Floats:
        """Offsets ``[rows, 3]`` of training rows, by the regression that was not fitted on their prompts."""
        matrix, part = form_features(rows), np.array([_part(row) for row in rows])
        found = np.empty((len(rows), 3))
        for k in np.unique(part):
            found[part == k] = np.log(self.held_out[k].predict_form(matrix[part == k]))
        return found

    def save(self, folder: Path) -> None:
        """Write the numbers that predict new rows into ``folder``."""
        regressions = [dataclasses.asdict(each) for each in self.regressions]
        write_json(folder / OFFSET_FILE, {"logit_scale": self.logit_scale, "regressions": regressions})

    @classmethod
    def load(cls, folder: Path) -> FormOffset:
        """Read what :meth:`save` wrote; earlier versions wrote the regressions only, and scaled no logits.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = folder / OFFSET_FILE
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(stored, list):
                stored = {"logit_scale": 1.0, "regressions": stored}
            regressions = [Regression(**each) for each in stored["regressions"]]
            if not regressions:
                raise ValueError("it is empty")
            found = cls(regressions, float(stored["logit_scale"]))
            if not 0 <= found.logit_scale <= 1:
                raise ValueError("its logit_scale is not between 0 and 1")
            if not np.isfinite(found.logits([Comparison("", ("",), ("",), ("",))])).all():
                raise ValueError("its numbers are not finite")
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"{file}: can't be read ({error}), but head.offset=form needs it.\n"
                "  Restore it, or name a run that was trained with head.offset=form."
            ) from None
        return found


def logit_scale(rows: int) -> float:
    """Factor of the logits of a model that was trained on so many rows, beside an offset.

    It is the credibility factor ``n / (n + k)`` by which insurers weigh their experience with one customer
    against that with all (Bühlmann 1967, doi:10.1017/S0515036100008989); k is :data:`HALF_ROWS`.

    >>> logit_scale(600), round(logit_scale(57_477), 2)
    (0.5, 0.99)
    """
    return rows / (rows + HALF_ROWS)


def _part(row: Comparison) -> int:
    """Part of the row's prompt; equal for rows with the same one, in every process."""
    return zlib.crc32(row.prompt_text.encode()) % PARTS
