"""The form in which all modules handle a row, and its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LABELS = ("a", "b", "tie")
"""Order of the three outcomes everywhere: probabilities, labels, answer tokens, columns."""

UNLABELLED = -1
"""Label in an array of a row whose outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One conversation held with two models, and whose responses the person preferred.

    >>> Comparison("7", ("Hi", "Bye"), ("Hello!", "Bye!"), ("Yo", "Later"), label=0).swapped().label
    1
    """

    id: str
    prompts: tuple[str, ...]
    """User turns; ``responses_a[i]`` and ``responses_b[i]`` answer ``prompts[i]``."""
    responses_a: tuple[str, ...]
    responses_b: tuple[str, ...]
    label: int | None = None
    """Index into :data:`LABELS`; None for a row that is only to be predicted."""
    soft_label: tuple[float, float, float] | None = None
    """Probabilities in :data:`LABELS` order that replace the one-hot label in training."""
    true_probabilities: tuple[float, float, float] | None = None
    """Predictions of a perfect predictor, known for simulated rows only."""
    model_a: str | None = None
    model_b: str | None = None
    extra: Mapping[str, str | int | float | bool] = field(default_factory=dict, compare=False)
    """Further columns of the source (language, annotator, ...); never part of a prompt."""
    both_bad: bool = False
    """Whether a tie means that both responses are bad."""

    @property
    def prompt_text(self) -> str:
        """All user turns as one text."""
        return "\n".join(self.prompts)

    def swapped(self) -> Comparison:
        """Return the same judgement with responses A and B swapped; a tie stays a tie."""

        def exchange(p: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
            return None if p is None else (p[1], p[0], p[2])

        return dataclasses.replace(
            self,
            responses_a=self.responses_b,
            responses_b=self.responses_a,
            label=None if self.label is None else (1, 0, 2)[self.label],
            soft_label=exchange(self.soft_label),
            true_probabilities=exchange(self.true_probabilities),
            model_a=self.model_b,
            model_b=self.model_a,
        )


def label_array(rows: Iterable[Comparison]) -> NDArray[np.int64]:
    """Labels ``[rows]`` of comparisons, :data:`UNLABELLED` where the outcome is unknown."""
    return np.array([UNLABELLED if row.label is None else row.label for row in rows], dtype=np.int64)


def rows_fingerprint(rows: Iterable[Comparison]) -> str:
    """Compute a SHA-256 of all that can influence training: ids, texts, labels and probabilities, in order.

    ``extra`` is left out. The same rows give the same value whether they came from CSV or Parquet.
    """
    digest = hashlib.sha256()
    for row in rows:
        texts = [text.encode() for side in (row.prompts, row.responses_a, row.responses_b) for text in side]
        facts = (
            row.id,
            row.label,
            row.soft_label,
            row.true_probabilities,
            row.model_a,
            row.model_b,
            [len(text) for text in texts],  # where each text ends
            *(("both_bad",) if row.both_bad else ()),  # rows without it keep their earlier fingerprints
        )
        digest.update(json.dumps(facts).encode())
        digest.update(b"".join(texts))
    return digest.hexdigest()
