"""What training rows give away about validation rows: the report, and the rule for extra data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.duplicates import Similar, content_key, find_similar
from lmsys_unsloth.data.folds import prompt_text
from lmsys_unsloth.data.sources import Rows

ANSWER_LENGTH = 50
"""Shorter answers ("Yes.") coincide by chance and are left out of the leak report."""


def leak_report(
    rows: Sequence[Comparison], held_out: NDArray[np.bool_], prompts: Similar, answers: Similar
) -> dict[str, Any]:
    """How many validation rows repeat a prompt, or an answer, of the training rows.

    ``exact`` counts rows with a text that is equal (apart from case and white space) to one of
    training; ``near`` counts rows linked to training by a chain of similar texts, exact ones
    included. A prompt in both makes the score too good: the model has seen how a person judged
    it. An answer in both is usual where bots of one family meet again, and only reported.

    Args:
        rows: training and validation rows together.
        held_out: (rows,) true for validation rows.
        prompts: of ``map(prompt_text, rows)``.
        answers: of all :func:`answer_texts`, row by row.

    Returns:
        ``{"verdict": "...", "prompts": {"exact": 0, "near": 0, "share_near": 0.0}, "answers": {…}}``
    """
    owners = np.repeat(np.arange(len(rows)), [len(answer_texts(row)) for row in rows])
    report = {
        "prompts": _overlap(prompts, np.arange(len(rows)), held_out),
        "answers": _overlap(answers, owners, held_out),
    }
    return {"verdict": verdict(report["prompts"]["near"], int(held_out.sum())), **report}


def verdict(leaking: int, rows: int) -> str:
    """The report in one line.

    >>> verdict(3, 10)
    'LEAK: 3 of 10 validation rows (30%) have a prompt that is in training too; scores will be too good'
    """
    if not leaking:
        return "no prompt is in both training and validation"
    return (
        f"LEAK: {leaking:,} of {rows:,} validation rows ({leaking / rows:.0%}) have a prompt that is in "
        "training too; scores will be too good"
    )


def answer_texts(row: Comparison) -> list[str]:
    """Each bot's answers as one text; none for a bot whose text is shorter than :data:`ANSWER_LENGTH`."""
    joined = ("\n".join(row.responses_a), "\n".join(row.responses_b))
    return [text for text in joined if len(text) >= ANSWER_LENGTH]


def _overlap(similar: Similar, owners: NDArray[np.int64], held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Validation rows of which any text is equal, or similar, to any text of training.

    Args:
        similar: partitions of all texts.
        owners: (texts,) the row of each text.
        held_out: (rows,) true for validation rows.
    """
    of_validation = held_out[owners]

    def rows_in_training(partition: NDArray[np.int64]) -> int:
        found = np.isin(partition, partition[~of_validation]) & of_validation
        return len(np.unique(owners[found]))

    near = rows_in_training(similar.near)
    share = round(near / max(int(held_out.sum()), 1), 4)
    return {"exact": rows_in_training(similar.exact), "near": near, "share_near": share}


def admit_extra(
    extras: Sequence[Rows], train: Sequence[Comparison], validation: Sequence[Comparison], threshold: float
) -> tuple[list[Comparison], list[dict[str, Any]]]:
    """Extra rows that may join the training rows, and counts for each source.

    Left out: rows whose prompt is (nearly) that of a validation row, and rows that are already in
    training. An id that is taken gets the source's name in front.

    Returns:
        rows, and for each source ``{"source", "rows", "in_validation", "already_in_training",
        "renamed_ids", "used"}``.
    """
    if not extras:
        return [], []
    offered = [row for source in extras for row in source.rows]
    similar: Similar = find_similar(map(prompt_text, [*validation, *offered]), threshold, "extra prompts")
    leaking = iter(np.isin(similar.near[len(validation) :], similar.near[: len(validation)]).tolist())
    contents = {content_key(row) for row in train}
    ids = {row.id for row in (*train, *validation)}
    admitted: list[Comparison] = []
    reports: list[dict[str, Any]] = []
    for source in extras:
        counts = {"in_validation": 0, "already_in_training": 0, "renamed_ids": 0, "used": 0}
        for row in source.rows:
            content = content_key(row)
            if next(leaking):
                counts["in_validation"] += 1
            elif content in contents:
                counts["already_in_training"] += 1
            else:
                unique = _with_free_id(row, Path(source.source).stem, ids)
                counts["renamed_ids"] += unique.id != row.id
                counts["used"] += 1
                contents.add(content)
                ids.add(unique.id)
                admitted.append(unique)
        reports.append({"source": source.source, "rows": len(source.rows), **counts})
    return admitted, reports


def _with_free_id(row: Comparison, prefix: str, taken: set[str]) -> Comparison:
    name = row.id
    while name in taken:
        name = f"{prefix}:{name}"
    return row if name == row.id else dataclasses.replace(row, id=name)
