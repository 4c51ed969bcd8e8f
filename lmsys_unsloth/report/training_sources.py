"""Describe what a training took over from other runs and files, as ``data.json`` records it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREDICTED_BY = {
    "cross-validation": "out-of-fold predictions of a cross-validation",
    "runs": "predictions of runs that were not trained on the validation rows of this one",
    "unknown": "predictions of unknown origin",
}
"""Descriptions of a teacher by the values of ``predicted_by``."""


def training_sources(data: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """List ``(what, description, directories or files)`` of a teacher, earlier stages and extra rows.

    ``data`` is the content of ``data.json``; empty if the training used nothing but its own data set.
    """
    found = []
    teacher = data.get("teacher")
    if teacher is not None:
        text = (
            f"{PREDICTED_BY[teacher['predicted_by']]}, with weight {teacher['weight']:g} in the targets of "
            f"{teacher['rows']:,} training rows"
        )
        if teacher["rows_without_own_label"]:
            text += f", of which {teacher['rows_without_own_label']:,} have no label of their own"
        found.append(("teacher", text, [teacher["source"], *teacher["runs"]]))
    if "stages" in data:
        stages = data["stages"]
        text = (
            f"{len(stages)} runs, each starting from the trained weights of the one before; this is the last"
        )
        found.append(("stages", text, list(stages)))
    for extra in data.get("extra", ()):
        text = f"{extra['used']:,} of {extra['rows']:,} rows of another file were trained on too"
        if extra.get("soft_labels"):
            text += f", {extra['soft_labels']:,} of them with soft labels (pseudo-labels or votes)"
        found.append(("extra rows", text, [extra["source"]]))
    return found
