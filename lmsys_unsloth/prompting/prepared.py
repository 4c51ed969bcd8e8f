"""Rows made ready for a model: what training, scoring and prediction all start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.selection import Overlap
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder


@dataclass(frozen=True)
class Prepared:
    """Rows encoded for one model, and how they belong together."""

    encoder: RowEncoder
    scored: Sequence[EncodedRow]
    """Rows to score, in file order."""
    folds: NDArray[np.int64]
    """``[scored]``; :data:`~lmsys_unsloth.data.selection.NO_FOLD` for rows that belong to no fold."""
    groups: NDArray[np.int64] | None
    """``[scored]``: rows that share a prompt share a number. None when a file is scored whole."""
    train: Sequence[EncodedRow] = ()
    """Rows to train on, swapped as ``data.swap`` says; empty for commands that do not train."""
    unit_sizes: Sequence[int] = ()
    """How many neighbours in ``train`` share an optimiser step: 2 for a row and its swapped copy."""
    baseline_rows: Sequence[Comparison] = ()
    """Training rows of the same data set, from which baselines learn; empty when a file is scored whole."""
    overlap: Overlap | None = None
    """How many rows of the file the scored run was trained on; None where that can't be."""
