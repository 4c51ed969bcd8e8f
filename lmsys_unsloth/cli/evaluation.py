"""What ``eval.py`` does: score a trained run, an untrained model, or several runs together."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.prepare import prepare_scoring
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.data.selection import (
    Overlap,
    Selection,
    is_split_from,
    select_for_trained,
    select_for_untrained,
)
from lmsys_unsloth.evaluate import adjustment, averaging, baselines, cross_validation, predictions
from lmsys_unsloth.evaluate.predictions import Predictions, form_columns
from lmsys_unsloth.evaluate.scores import WeightAverage
from lmsys_unsloth.evaluate.scoring import predict_rows
from lmsys_unsloth.evaluate.stacking import Calibration
from lmsys_unsloth.model import loading
from lmsys_unsloth.prompting.prepared import Prepared
from lmsys_unsloth.report.results import Outcome, report_results, report_scoring

log = logging.getLogger(__name__)

COMPARED_ROWS = 32
"""Number of rows on which a model with averaged adapters is compared with the average of the models."""


def evaluate_untrained(config: Config, output: Run) -> Outcome:
    """Score a base model without adapters on the validation fold, or on a whole file without labels."""
    selection = select_for_untrained(config, output)
    adjustment.require_labels(config.eval, selection.rows)
    prepared = prepare_scoring(config, selection, output)
    model = loading.load_model(config.model)
    predicted, speed = predict_rows(model, prepared, config)
    return report_scoring(output, config, prepared, predicted, speed)


def evaluate_run(member: Member, output: Run) -> Outcome:
    """Score a trained run on rows that it was not trained on."""
    rows = load_rows(member.config.data, output)
    selection = select_for_trained(member.config, [member.run], rows, output)
    calibration = _stored_calibration([member], rows, selection)
    prepared = prepare_scoring(member.config, selection, output)
    model = loading.load_adapters(loading.load_model(member.config.model), member.run.adapter)
    predicted, speed = predict_rows(model, prepared, member.config)
    _compare_with_stored(predicted, member.run)
    return report_scoring(output, member.config, prepared, predicted, speed, calibration)


def _stored_calibration(
    members: Sequence[Member], rows: Sequence[Comparison], selection: Selection
) -> Calibration | None:
    """What the runs' own validation rows say about predictions of a new file; None if not asked for.

    Also None for the data set that the runs were split from: there, predictions are adjusted out of fold.
    """
    config = members[0].config.eval
    if adjustment.requested_method(config) == "none" or _are_split_from(members, rows):
        return None
    return adjustment.load_calibration([member.run for member in members], selection.rows, config)


def evaluate_runs(members: Sequence[Member], output: Run) -> Outcome:
    """Combine several runs into one prediction.

    Over the data set that the runs were split from, folds are merged into a cross-validation and runs over
    the same fold are averaged; stored predictions are used unless ``eval.*`` asks for others. Over any other
    file, all runs predict every row that none of them was trained on, and are averaged.

    With ``eval.average=weights``, their adapters are averaged instead and written to ``output.adapter``.

    Raises:
        UserError: the file is the data set of some of the runs only, or the adapters can't be averaged.
    """
    config = members[0].config
    rows = load_rows(config.data, output)
    weights = config.eval.average == "weights"
    if weights:
        _require_averageable(members, own=_are_split_from(members, rows))
    if config.eval.trained_rows == "exclude" and _are_split_from(members, rows):
        return _merge_folds(members, rows, output)
    selection = select_for_trained(config, [member.run for member in members], rows, output)
    calibration = _stored_calibration(members, rows, selection)
    compared = None
    if weights:
        loading.average_adapters([member.run.adapter for member in members], output.adapter)
        averaged = dataclasses.replace(members[0], run=output)
        parts = _predict_all([averaged], [selection], output)
        compared = _compare_averages(members, selection, parts[0], output)
    else:
        parts = _predict_all(members, [selection] * len(members), output)
    average = averaging.average(parts)
    if calibration is not None:
        candidates = adjustment.apply(calibration, parts, selection.rows)
    else:
        candidates = adjustment.adjust_out_of_fold(average, selection.rows, seed=config.seed)
    return report_results(
        output, config, average, selection.rows, candidates=candidates, trained_rows=selection.overlap,
        weight_average=compared,
    )  # fmt: skip


def _require_averageable(members: Sequence[Member], *, own: bool) -> None:
    """Raise an error unless one model with the mean of the members' adapters can predict the rows."""
    remedy = "  Average the probabilities instead: eval.average=probabilities."
    if own:
        raise UserError(
            "eval.average=weights: the rows of this file trained these runs, so their averaged adapters have "
            f"seen them; name another file: data.path=FILE.\n{remedy}"
        )
    first = members[0]
    for member in members:
        if member.config.lora.kind == "full" or member.config.head.kind in ("lm_trained", "linear"):
            raise UserError(
                f"{member.run.path}: eval.average=weights averages LoRA adapters only, but this run has "
                f"lora.kind={member.config.lora.kind}, head.kind={member.config.head.kind}.\n{remedy}"
            )
        if _key(member.config, "model", "prompt", "head") != _key(first.config, "model", "prompt", "head"):
            raise UserError(
                f"{member.run.path} and {first.run.path}: differ in model, prompt or head; "
                f"eval.average=weights needs the same.\n{remedy}"
            )
    _require_adapters(members)


def _compare_averages(
    members: Sequence[Member], selection: Selection, averaged: Predictions, output: Run
) -> WeightAverage:
    """Compare the model with averaged adapters with the average of the models on the first rows."""
    first = np.arange(min(COMPARED_ROWS, len(selection.rows)))
    few = dataclasses.replace(
        selection,
        rows=selection.rows[: len(first)],
        folds=selection.folds[first],
        groups=None if selection.groups is None else selection.groups[first],
    )
    average = averaging.average(_predict_all(members, [few] * len(members), output))
    change = average.probabilities - averaged.take(first).probabilities
    distance = float(np.abs(change).sum(axis=1).mean() / 2)
    log.info(
        "averaged adapters: mean total variation distance %.4f from the average of %d models on %d rows",
        distance, len(members), len(first),
    )  # fmt: skip
    return WeightAverage(runs=len(members), rows=len(first), mean_distance=distance)


def _are_split_from(members: Sequence[Member], rows: Sequence[Comparison]) -> bool:
    """Whether ``rows`` are the data set of all members; an error if of some only."""
    fingerprint = rows_fingerprint(rows)
    owners = [member.run.path for member in members if is_split_from(member.run, fingerprint)]
    others = [str(member.run.path) for member in members if member.run.path not in owners]
    if owners and others:
        raise UserError(
            f"{', '.join(others)}: trained on other data than {owners[0]}.\n  Name runs that were split from "
            "the same data, or score all of them on another file: data.path=FILE."
        )
    return bool(owners)


def _merge_folds(members: Sequence[Member], rows: Sequence[Comparison], output: Run) -> Outcome:
    config = members[0].config
    again = [member for member in members if not _stored_predictions_hold(member)]
    _require_adapters(again)
    selections = [select_for_trained(m.config, [m.run], rows, output) for m in again]
    fresh = dict(zip((m.run.path for m in again), _predict_all(again, selections, output), strict=True))
    parts = [fresh.get(m.run.path) or _stored_predictions(m.run) for m in members]
    overlaps = [selection.overlap.scored for selection in selections if selection.overlap is not None]
    overlaps += [m.run.trained_rows_scored() for m in members if m not in again]
    merged = cross_validation.merge_runs(
        [member.run for member in members], parts, fit_weights=config.eval.fit_weights
    )
    log.info("%s", merged.description)
    write_json(
        output.data,
        {"fingerprint": rows_fingerprint(rows), "runs": merged.members, "weights": merged.weights},
    )
    by_id = {row.id: row for row in rows}
    predicted = merged.predictions
    scored = [by_id[row_id] for row_id in predicted.ids]
    several = len(np.unique(predicted.folds)) > 1
    regression = baselines.cross_validate(scored, predicted.folds) if several else form_columns(predicted)
    # A regression that predicts one of several folds is fitted on the labels of the others.
    independent = None if several else regression
    form = baselines.fit_form(baselines.features(scored), predicted.labels) if several else None
    return report_results(
        output,
        config,
        predicted,
        scored,
        candidates=adjustment.adjust_out_of_fold(predicted, scored, independent, seed=config.seed),
        form=None if any(count != 0 for count in overlaps) else form,
        train_prior=merged.train_prior,
        baseline_probabilities=regression,
        trained_rows=_sum_overlaps(overlaps),
        runs_compared=cross_validation.compare_models(merged, seed=config.seed),
    )


def _sum_overlaps(scored: Sequence[int | None]) -> Overlap | None:
    """Trained rows that merged predictions contain; None when they contain none."""
    known = [count for count in scored if count is not None]
    if len(known) < len(scored):
        return Overlap(left_out=0, scored=None)
    return Overlap(left_out=0, scored=sum(known)) if sum(known) else None


def _require_adapters(members: Sequence[Member]) -> None:
    missing = [str(m.run.path) for m in members if not m.run.adapter.is_dir()]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: has no adapters, so its rows can't be scored again as eval.* asks.\n"
            "  Name the run directories that train.py made, or leave eval.* out to use stored predictions."
        )


def _stored_predictions_hold(member: Member) -> bool:
    """Whether scoring the run again under the command's overrides would give its stored predictions."""

    def decisive(settings: Mapping[str, Any]) -> list[Any]:
        evaluation = settings["eval"]
        sections = [settings[name] for name in ("model", "prompt", "fold", "debug")]
        return [*sections, evaluation["swap"], evaluation["swap_share"]]

    stored = member.run.settings()
    return member.run.predictions.is_file() and decisive(stored) == decisive(
        member.config.model_dump(mode="json")
    )


def _predict_all(
    members: Sequence[Member], selections: Sequence[Selection], output: Run
) -> list[Predictions]:
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
            if base is None:
                base = loading.load_model(member.config.model)
            adapted = loading.load_adapters(base, member.run.adapter)
            found[index], _ = predict_rows(adapted, prepared[key], member.config)
            base = loading.remove_adapters(adapted)
            del adapted  # it would keep this base model in memory while another is loaded
    return [found[index] for index in range(len(members))]


def _key(config: Config, *sections: str) -> str:
    return json.dumps(config.model_dump(mode="json", include=set(sections)), sort_keys=True)


def _stored_predictions(run: Run) -> Predictions:
    """The model's own probabilities that a run stored, before any calibration."""
    return predictions.unadjusted(predictions.read_predictions(run.predictions))


def _compare_with_stored(predicted: Predictions, trained: Run) -> None:
    """Log how far the new probabilities are from those that the run stored for the same rows."""
    if not trained.predictions.is_file():
        return
    stored = _stored_predictions(trained)
    if list(stored.ids) != list(predicted.ids):
        return
    largest = float(np.abs(stored.probabilities - predicted.probabilities).max())
    log.info("largest difference from the probabilities stored in %s: %.1e", trained.predictions, largest)
