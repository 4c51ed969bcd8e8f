"""Encoded rows, from which training, scoring and prediction start."""

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
    """Rows encoded for one model, with their folds and groups."""

    encoder: RowEncoder
    scored: Sequence[EncodedRow]
    """Rows to score, in file order."""
    folds: NDArray[np.int64]
    """``[scored]``: fold of each row, or :data:`~lmsys_unsloth.data.selection.NO_FOLD`."""
    groups: NDArray[np.int64] | None
    """``[scored]``: a number for each group of rows with the same prompt. None if a whole file is scored."""
    train: Sequence[EncodedRow] = ()
    """Rows to train on, swapped according to ``data.swap``; empty for commands that do not train."""
    unit_sizes: Sequence[int] = ()
    """Numbers of consecutive rows of ``train`` that must share an optimiser step: 2 for a row and its swapped
    copy."""
    early_stopping: Sequence[EncodedRow] = ()
    """Rows by which the best step is chosen: none of them is trained on or scored. Those of a head that needs
    both orders of the responses are each followed by their swapped copy."""
    baseline_rows: Sequence[Comparison] = ()
    """Training rows for the baselines; empty if a whole file is scored."""
    overlap: Overlap | None = None
    """Numbers of rows that the model was trained on; None if it was trained on none of the file."""
