"""Leaks from training to validation rows: the report, and the rule for extra data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.duplicates import Similar, content_key, find_similar
from lmsys_unsloth.data.folds import group_rows
from lmsys_unsloth.data.sources import Rows

ANSWER_LENGTH = 50
"""Minimum characters of a response in the leak report; shorter ones ("Yes.") coincide by chance."""

WARNING_SHARE = 0.5
"""Share of validation rows with a response that is in training too, from which the report warns."""


def leak_report(
    rows: Sequence[Comparison],
    held_out: NDArray[np.bool_],
    prompts: Similar,
    answers: Similar,
    groups: NDArray[np.int64],
) -> dict[str, Any]:
    """Count validation rows that repeat a prompt, or a response, of the training rows.

    ``exact`` counts rows with a text that is equal (apart from case and white space) to one of
    training; ``near`` counts rows linked to training by a chain of similar texts, exact ones
    included. A prompt in both makes the score too optimistic: the model has seen how a person judged
    it. A response in both is usual where models of one family are compared again; as many as half of the
    rows mean that the score does not show how well new responses are judged.

    Args:
        rows: training and validation rows together.
        held_out: ``[rows]``, true for validation rows.
        prompts: partitions of the rows' ``prompt_text``.
        answers: partitions of all :func:`answer_texts`, row by row.
        groups: ``[rows]`` groups of rows that should share a fold; saved folds may split them.

    Returns:
        ``{"verdict": "...", "warnings": [], "prompts": {"exact": 0, "near": 0, "share_near": 0.0},
        "answers": {…}}``
    """
    owners = np.repeat(np.arange(len(rows)), [len(answer_texts(row)) for row in rows])
    overlap = _overlap(prompts, np.arange(len(rows)), held_out)
    repeated = _overlap(answers, owners, held_out)
    count, split = int(held_out.sum()), int(np.isin(groups[held_out], groups[~held_out]).sum())
    warnings = answer_warnings(repeated["near"], count)
    if split > overlap["near"]:
        warnings.append(
            f"{split:,} of {count:,} validation rows ({split / count:.0%}) share a value that rows are "
            "grouped by with training rows; scores may be too optimistic: leave out data.fold_file"
        )
    return {
        "verdict": verdict(overlap["near"], count),
        "warnings": warnings,
        "prompts": overlap,
        "answers": repeated,
    }


def verdict(leaking: int, rows: int) -> str:
    """Say in one line whether prompts leak.

    >>> verdict(3, 10)
    'LEAK: 3 of 10 validation rows (30%) have a prompt that is in training too; scores will be too optimistic'
    """
    if not leaking:
        return "no prompt is in both training and validation"
    return (
        f"LEAK: {leaking:,} of {rows:,} validation rows ({leaking / rows:.0%}) have a prompt that is in "
        "training too; scores will be too optimistic"
    )


def answer_warnings(repeated: int, rows: int) -> list[str]:
    """Warn when :data:`WARNING_SHARE` or more of the validation rows repeat a training response.

    >>> answer_warnings(4, 10)
    []
    """
    if repeated < WARNING_SHARE * rows:
        return []
    return [
        f"{repeated:,} of {rows:,} validation rows ({repeated / rows:.0%}) have a response that is in "
        "training too; scores do not show how well new responses are judged: group folds by a column "
        "that such rows share (data.group_by=[COLUMN])"
    ]


def answer_texts(row: Comparison) -> list[str]:
    """Return responses A and B, each as one text, without those shorter than :data:`ANSWER_LENGTH`."""
    texts = ("\n".join(row.responses_a), "\n".join(row.responses_b))
    return [text for text in texts if len(text) >= ANSWER_LENGTH]


def _overlap(similar: Similar, owners: NDArray[np.int64], held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Count validation rows of which any text is equal, or similar, to any training text.

    Args:
        similar: partitions of all texts.
        owners: ``[texts]`` row of each text.
        held_out: ``[rows]``, true for validation rows.
    """
    of_validation = held_out[owners]

    def rows_in_training(partition: NDArray[np.int64]) -> int:
        found = np.isin(partition, partition[~of_validation]) & of_validation
        return len(np.unique(owners[found]))

    near = rows_in_training(similar.near)
    share = round(near / max(int(held_out.sum()), 1), 4)
    return {"exact": rows_in_training(similar.exact), "near": near, "share_near": share}


def admit_extra(
    extras: Sequence[Rows],
    train: Sequence[Comparison],
    validation: Sequence[Comparison],
    threshold: float,
    columns: Sequence[str] = (),
) -> tuple[list[Comparison], list[dict[str, Any]]]:
    """Choose the extra rows that may join the training rows.

    Left out are rows whose prompt is (nearly) that of a validation row or which share a value in one of
    ``columns`` with a validation row, and rows that are in training already. An id that is in use is
    prefixed with the source's name.

    Returns:
        Rows, and for each source ``{"source", "rows", "in_validation", "already_in_training",
        "renamed_ids", "used", "soft_labels"}``; the last are those of the used rows that have a soft label.
    """
    if not extras:
        return [], []
    offered = [row for source in extras for row in source.rows]
    texts = (row.prompt_text for row in (*validation, *offered))
    prompts = find_similar(texts, threshold).near
    groups = group_rows([*validation, *offered], prompts, columns)
    leaking = iter(np.isin(groups[len(validation) :], groups[: len(validation)]).tolist())
    contents = {content_key(row) for row in train}
    ids = {row.id for row in (*train, *validation)}
    admitted: list[Comparison] = []
    reports: list[dict[str, Any]] = []
    for source in extras:
        counts = {"in_validation": 0, "already_in_training": 0, "renamed_ids": 0, "used": 0, "soft_labels": 0}
        for row in source.rows:
            content = content_key(row)
            if next(leaking):
                counts["in_validation"] += 1
            elif content in contents:
                counts["already_in_training"] += 1
            else:
                name = row.id
                while name in ids:
                    name = f"{Path(source.source).stem}:{name}"
                counts["renamed_ids"] += name != row.id
                counts["used"] += 1
                counts["soft_labels"] += row.soft_label is not None
                contents.add(content)
                ids.add(name)
                admitted.append(dataclasses.replace(row, id=name))
        reports.append({"source": source.source, "rows": len(source.rows), **counts})
    return admitted, reports
