"""A short and a long row, a budget that the long one exceeds, and how encoded rows are compared."""

from __future__ import annotations

import numpy as np

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.encoding import EncodedRow

ROW = Comparison("7", ("Hi", "More?"), ("Hello!", "No."), ("Yo", "Yes."), label=1)
LONG = Comparison(
    "9", ("Tell me. " * 90, "And now? " * 30), ("It is so. " * 99, "Yes. " * 5), ("川の流れ" * 40, "否" * 300)
)
BUDGET = 300


def same(one: EncodedRow, other: EncodedRow) -> bool:
    """Whether two rows have the same text and ids."""
    return one.text == other.text and np.array_equal(one.input_ids, other.input_ids)
