"""Whole optimiser steps as items of a dataset: encoded rows with targets and offsets of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lmsys_unsloth.model.answer_head import AnswerHead, form_offsets
from lmsys_unsloth.model.batch import Batch, collate, target
from lmsys_unsloth.prompting.encoding import EncodedRow
from lmsys_unsloth.train.steps import Step


class StepDataset(torch.utils.data.Dataset[tuple[list[Batch], int]]):
    """Dataset whose item ``i`` holds this rank's micro-batches of optimiser step ``i``.

    Args:
        steps: this rank's share of every step.
        rows, head: what the indices in ``steps`` refer to, and the head that they are collated for.
        totals: number of rows of every step, on all ranks together.
    """

    def __init__(
        self, steps: Sequence[Step], rows: Sequence[EncodedRow], head: AnswerHead, totals: Sequence[int]
    ) -> None:
        self.steps, self.rows, self.head, self.totals = steps, rows, head, totals

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[list[Batch], int]:
        batches = [labelled_batch([self.rows[row] for row in rows], self.head) for rows in self.steps[index]]
        return batches, self.totals[index]


def labelled_batch(rows: Sequence[EncodedRow], head: AnswerHead) -> Batch:
    """Collate training rows with target probabilities and offsets of the head's answers."""
    comparisons, answers = [row.comparison for row in rows], len(head.answer_ids)
    return collate(
        [row.input_ids for row in rows],
        [target(c.label, c.soft_label, answers=answers, both_bad=c.both_bad) for c in comparisons],
        rows_per_unit=head.rows_per_unit,
        offsets=form_offsets(head, rows, held_out=True),
    )


def only(items: list[tuple[list[Batch], int]]) -> dict[str, Any]:
    """The only item of a batch, as what a training step gets."""
    ((micro_batches, rows),) = items
    return {"micro_batches": micro_batches, "rows": rows}
