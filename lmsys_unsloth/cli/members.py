"""Predictions of several trained runs, and of one model with the average of their adapters."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.prepare import prepare_scoring
from lmsys_unsloth.config.checks import TRAINED_HEADS
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.selection import Selection
from lmsys_unsloth.evaluate import averaging, predictions
from lmsys_unsloth.evaluate.passes.partial_scores import PartialScores
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scores import WeightAverage
from lmsys_unsloth.evaluate.scoring import predict_rows
from lmsys_unsloth.model import trained_weights
from lmsys_unsloth.predict.models import load_scored_model
from lmsys_unsloth.prompting.prepared import Prepared

log = logging.getLogger(__name__)

COMPARED_ROWS = 32
"""Number of rows on which a model with averaged adapters is compared with the average of the models."""


def predict_all(members: Sequence[Member], selections: Sequence[Selection], output: Run) -> list[Predictions]:
    """Predict each member's selection; every base model is loaded once and every selection encoded once."""
    found: dict[int, Predictions] = {}
    prepared: dict[tuple[str, int], Prepared] = {}
    by_model: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        by_model.setdefault(_key(member.config, "model"), []).append(index)
    for indices in by_model.values():
        base = None
        for index in indices:
            member, selection = members[index], selections[index]
            key = _key(member.config, "model", "prompt"), id(selection)
            if key not in prepared:
                prepared[key] = prepare_scoring(member.config, selection, output)
            encoder = prepared[key].encoder
            adapted = load_scored_model(member.config, encoder, member.run.adapter, base=base)
            partial = PartialScores(output, member.config, member.run.adapter, prepared[key].scored)
            found[index], _ = predict_rows(adapted, prepared[key], member.config, partial)
            base = trained_weights.remove_adapters(adapted)
            del adapted  # it would keep this base model in memory while another is loaded
    return [found[index] for index in range(len(members))]


def require_adapters(members: Sequence[Member]) -> None:
    """Raise an error if a run has no adapters to score rows with."""
    missing = [str(m.run.path) for m in members if not m.run.adapter.is_dir()]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: has no adapters, so its rows can't be scored again as eval.* asks.\n"
            "  Name the run directories that train.py made, or leave eval.* out to use stored predictions."
        )


def require_averageable(members: Sequence[Member], *, own: bool) -> None:
    """Raise an error unless one model with the mean of the members' adapters can predict the rows."""
    remedy = "  Average the probabilities instead: eval.average=probabilities."
    if own:
        raise UserError(
            "eval.average=weights: the rows of this file trained these runs, so their averaged adapters have "
            f"seen them; name another file: data.path=FILE.\n{remedy}"
        )
    first = members[0]
    for member in members:
        if member.config.lora.kind == "full" or member.config.head.kind in TRAINED_HEADS:
            raise UserError(
                f"{member.run.path}: eval.average=weights averages LoRA adapters only, but this run has "
                f"lora.kind={member.config.lora.kind}, head.kind={member.config.head.kind}.\n{remedy}"
            )
        if _key(member.config, "model", "prompt", "head") != _key(first.config, "model", "prompt", "head"):
            raise UserError(
                f"{member.run.path} and {first.run.path}: differ in model, prompt or head; "
                f"eval.average=weights needs the same.\n{remedy}"
            )
    require_adapters(members)


def predict_with_average(
    members: Sequence[Member], selection: Selection, output: Run
) -> tuple[Predictions, WeightAverage]:
    """Predict with the average of the members' adapters, which is written to ``output.adapter``.

    On the first rows, all members predict too, with the same base model in memory.

    Returns:
        Predictions of the selection, and how far they are from the average of the members' predictions.
    """
    trained_weights.average_adapters([member.run.adapter for member in members], output.adapter)
    first = np.arange(min(COMPARED_ROWS, len(selection.rows)))
    few = _take(selection, first)
    averaged = dataclasses.replace(members[0], run=output)
    predicted, *parts = predict_all([averaged, *members], [selection, *[few] * len(members)], output)
    change = averaging.average(parts).probabilities - predicted.take(first).probabilities
    distance = float(np.abs(change).sum(axis=1).mean() / 2)
    log.info(
        "averaged adapters: mean total variation distance %.4f from the average of %d models on %d rows",
        distance, len(members), len(first),
    )  # fmt: skip
    return predicted, WeightAverage(runs=len(members), rows=len(first), mean_distance=distance)


def require_cascade(members: Sequence[Member], *, own: bool) -> None:
    """Raise an error unless the second of two runs can predict what the first is uncertain of."""
    problems = []
    if len(members) != 2:
        problems.append(f"needs two runs, the small one first: runs=[SMALL,LARGE]; there are {len(members)}")
    if own:
        problems.append("the rows are those that the runs were split from; name another file: data.path=FILE")
    if members[0].config.eval.stack or members[0].config.eval.calibrate != "none":
        problems.append("two models can't be calibrated together; leave eval.calibrate, eval.stack out")
    if problems:
        raise UserError("\n  ".join(["eval.average=cascade:", *problems]))
    require_adapters(members)


def predict_in_cascade(members: Sequence[Member], selection: Selection, output: Run) -> Predictions:
    """Predict all rows with the first run, and the least certain ones again with the second."""
    share = members[0].config.eval.cascade_share
    [first] = predict_all(members[:1], [selection], output)
    where = predictions.least_certain(first.probabilities, share)
    [second] = predict_all(members[1:], [_take(selection, where)], output)
    probabilities = first.probabilities.copy()
    probabilities[where] = second.probabilities
    log.info(
        "%s predicted %d of %d rows, the least certain ones", members[1].run.path, len(where), len(first)
    )
    kept = {name: values for name, values in first.extra.items() if name not in predictions.SWAP_COLUMNS}
    return dataclasses.replace(first, probabilities=probabilities, extra=kept)


def _take(selection: Selection, index: NDArray[np.int64]) -> Selection:
    """The rows at these positions."""
    return dataclasses.replace(
        selection,
        rows=[selection.rows[i] for i in index.tolist()],
        folds=selection.folds[index],
        groups=None if selection.groups is None else selection.groups[index],
    )


def _key(config: Config, *sections: str) -> str:
    return json.dumps(config.model_dump(mode="json", include=set(sections)), sort_keys=True)
