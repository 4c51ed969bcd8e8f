"""What ``eval.py`` does: score a trained run, an untrained model, or several runs together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.members import (
    predict_all,
    predict_in_cascade,
    predict_with_average,
    require_adapters,
    require_averageable,
    require_cascade,
)
from lmsys_unsloth.cli.prepare import prepare_scoring
from lmsys_unsloth.config.checks import TRAINED_HEADS
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import Regression, fit_form
from lmsys_unsloth.data.selection import (
    Overlap,
    Selection,
    is_split_from,
    select_for_trained,
    select_for_untrained,
)
from lmsys_unsloth.evaluate import adjustment, averaging, baselines, cross_validation, predictions
from lmsys_unsloth.evaluate.adjustment import Adjusted
from lmsys_unsloth.evaluate.passes.partial_scores import PartialScores
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    stored_columns,
    with_columns,
)
from lmsys_unsloth.evaluate.scoring import predict_rows
from lmsys_unsloth.evaluate.stacking import Calibration
from lmsys_unsloth.predict.models import load_scored_model
from lmsys_unsloth.report.results import Outcome, report_results, report_scoring

log = logging.getLogger(__name__)


def evaluate_untrained(config: Config, output: Run) -> Outcome:
    """Score a base model without adapters on the validation fold, or on a whole file without labels."""
    if config.head.kind in TRAINED_HEADS:
        raise UserError(
            f"head.kind = {config.head.kind}: an untrained model has no trained head; leave it out (head=lm)"
        )
    selection = select_for_untrained(config, output)
    adjustment.require_labels(config.eval, selection.rows)
    prepared = prepare_scoring(config, selection, output)
    model = load_scored_model(config, prepared.encoder, None)
    partial = PartialScores(output, config, None, prepared.scored)
    predicted, speed = predict_rows(model, prepared, config, partial)
    return report_scoring(output, config, prepared, predicted, speed)


def evaluate_run(member: Member, output: Run) -> Outcome:
    """Score a trained run on rows that it was not trained on."""
    rows = load_rows(member.config.data, output)
    selection = select_for_trained(member.config, [member.run], rows, output)
    calibration = _stored_calibration([member], rows, selection)
    prepared = prepare_scoring(member.config, selection, output)
    model = load_scored_model(member.config, prepared.encoder, member.run.adapter)
    partial = PartialScores(output, member.config, member.run.adapter, prepared.scored)
    predicted, speed = predict_rows(model, prepared, member.config, partial)
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

    With ``eval.average=weights``, their adapters are averaged instead and written to ``output.adapter``; with
    ``cascade``, the second run predicts only the rows that the first is least certain of.

    Raises:
        UserError: the file is the data set of some of the runs only, or the adapters can't be averaged.
    """
    config = members[0].config
    rows = load_rows(config.data, output)
    weights = config.eval.average == "weights"
    if weights:
        require_averageable(members, own=_are_split_from(members, rows))
    if config.eval.average == "cascade":
        require_cascade(members, own=_are_split_from(members, rows))
    if config.eval.trained_rows == "exclude" and _are_split_from(members, rows):
        return _merge_folds(members, rows, output)
    selection = select_for_trained(config, [member.run for member in members], rows, output)
    calibration = _stored_calibration(members, rows, selection)
    compared = None
    if weights:
        predicted, compared = predict_with_average(members, selection, output)
        parts = [predicted]
    elif config.eval.average == "cascade":
        parts = [predict_in_cascade(members, selection, output)]
    else:
        parts = predict_all(members, [selection] * len(members), output)
    average = averaging.average(parts)
    candidates: Adjusted = {}
    if calibration is not None:
        candidates = adjustment.apply(calibration, parts, form_features(selection.rows))
    elif average.labelled.any():
        features = form_features(selection.rows)
        candidates = adjustment.adjust_out_of_fold(average, features, seed=config.seed)
    return report_results(
        output, config, average, selection.rows, candidates=candidates, trained_rows=selection.overlap,
        weight_average=compared,
    )  # fmt: skip


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
    require_adapters(again)
    selections = [select_for_trained(m.config, [m.run], rows, output) for m in again]
    fresh = dict(zip((m.run.path for m in again), predict_all(again, selections, output), strict=True))
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
    features = form_features(scored)
    independent = stored_columns(predicted, FORM_COLUMNS)
    form: Regression | None = None
    if len(np.unique(predicted.folds)) > 1:
        independent = None  # that of one fold was fitted on the labels of the others
        form = fit_form(features, predicted.labels)
        for names, fit in ((FORM_COLUMNS, fit_form), (BASELINE_COLUMNS, baselines.fit_baseline)):
            by_fold = baselines.predict_parts(features, predicted.labels, predicted.folds, fit)
            predicted = with_columns(predicted, names, by_fold)
    return report_results(
        output,
        config,
        predicted,
        scored,
        candidates=adjustment.adjust_out_of_fold(predicted, features, independent, seed=config.seed),
        form=None if any(count != 0 for count in overlaps) else form,
        train_prior=merged.train_prior,
        trained_rows=_sum_overlaps(overlaps),
        runs_compared=cross_validation.compare_models(merged, seed=config.seed),
    )


def _sum_overlaps(scored: Sequence[int | None]) -> Overlap | None:
    """Trained rows that merged predictions contain; None when they contain none."""
    known = [count for count in scored if count is not None]
    if len(known) < len(scored):
        return Overlap(left_out=0, scored=None)
    return Overlap(left_out=0, scored=sum(known)) if sum(known) else None


def _stored_predictions_hold(member: Member) -> bool:
    """Whether scoring the run again under the command's overrides would give its stored predictions."""
    stored, current = member.run.settings(), member.config.model_dump(mode="json")
    decisive = ("model", "prompt", "fold", "debug")
    same = all(_contains(current[name], stored[name]) for name in decisive)
    same &= all(current["eval"][key] == stored["eval"][key] for key in ("swap", "swap_share"))
    same &= current["eval"]["time_budget"] == stored["eval"].get("time_budget")
    same &= current["engine"]["kind"] == stored.get("engine", {"kind": "native"})["kind"]
    same &= current["head"]["kind"] == stored.get("head", {"kind": "lm"})["kind"]
    return member.run.predictions.is_file() and same


def _contains(current: Any, stored: Any) -> bool:
    """Whether all stored values are current ones; keys that an earlier version did not have may be added."""
    if isinstance(stored, Mapping):
        return all(key in current and _contains(current[key], value) for key, value in stored.items())
    return bool(current == stored)


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
