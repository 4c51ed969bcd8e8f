"""How far the predictions of two engines, or of a model before and after its export, are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.bootstrap import Interval, paired_bootstrap
from lmsys_unsloth.evaluate.calibration import log_losses

LARGEST_CHANGE = 0.005
"""Largest change of log loss, clear of 0 by its interval, up to which two count as the same."""


@dataclass(frozen=True)
class Agreement:
    """How far predictions of the same rows by two engines or models are apart."""

    rows: int
    mean_difference: float
    """Mean absolute difference of a probability."""
    largest_difference: float
    log_loss: float | None
    """Of the reference; None without labels."""
    change: float | None
    """Log loss of the other one minus that of the reference."""
    change_ci: Interval | None

    @property
    def agrees(self) -> bool:
        """Whether log loss does not clearly change by more than :data:`LARGEST_CHANGE`.

        A change whose 95% interval holds 0 may be rounding: on a hundred rows, weights in bfloat16 move log
        loss by about as much in either direction. Without labels, the mean difference of a probability
        counts.
        """
        if self.change is None:
            return self.mean_difference <= LARGEST_CHANGE
        clear = self.change_ci is None or self.change_ci[0] * self.change_ci[1] > 0
        return abs(self.change) <= LARGEST_CHANGE or not clear

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"{self.rows} rows: probabilities differ by {self.mean_difference:.5f} on average, at most "
            f"{self.largest_difference:.5f}"
        )
        if self.change is None:
            return text
        interval = "" if self.change_ci is None else " ({:+.5f} to {:+.5f})".format(*self.change_ci)
        return f"{text}; log loss {self.log_loss:.4f} {self.change:+.5f}{interval}"


def compare(
    reference: NDArray[np.float32], other: NDArray[np.float32], rows: Sequence[Comparison]
) -> Agreement:
    """Compare probabilities ``[rows, 3]`` of the same rows; labels are used where rows have them."""
    apart = np.abs(reference.astype(np.float64) - other)
    labelled = np.array([row.label is not None for row in rows], dtype=np.bool_)
    loss = change = interval = None
    if labelled.any():
        labels = np.array([row.label for row in rows if row.label is not None])
        first, second = (log_losses(p[labelled].astype(np.float64), labels) for p in (other, reference))
        pair = paired_bootstrap(first, second, np.arange(len(labels)))
        loss, change, interval = float(second.mean()), pair.difference, pair.difference_ci
    return Agreement(len(rows), float(apart.mean()), float(apart.max()), loss, change, interval)
