"""Calibrated and stacked predictions: which rows they are fitted on, how they are stored and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import EvalConfig
from lmsys_unsloth.core.arrays import Floats
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.form.regression import Regression
from lmsys_unsloth.evaluate.bootstrap import PairedDifference, cluster_numbers, paired_bootstrap, random_parts
from lmsys_unsloth.evaluate.calibration import apply_temperature, fit_temperature, log_losses
from lmsys_unsloth.evaluate.metrics import checked_probabilities
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    adjusted,
    concatenate,
    one_order,
    read_predictions,
    stored_columns,
    unadjusted,
)
from lmsys_unsloth.evaluate.scores import AdjustedScore
from lmsys_unsloth.evaluate.stacking import Calibration, Method, adjust_parts, fit_stack

log = logging.getLogger(__name__)

VERSION = 2
"""Version of the layout of ``calibration.json``."""

Adjusted = Mapping[Method, Floats]
"""Probabilities ``[n, 3]`` of all rows by the method that they were adjusted with."""


def requested_method(config: EvalConfig) -> Method:
    """The method that ``eval.calibrate`` and ``eval.stack`` ask for; a stack includes the temperature."""
    return "stack" if config.stack else config.calibrate


def require_labels(config: EvalConfig, rows: Sequence[Comparison]) -> None:
    """Raise an error if an adjustment is asked for whose rows to fit on, these, all lack a label."""
    if requested_method(config) != "none" and all(row.label is None for row in rows):
        raise UserError(
            f"{_setting(config)}: is fitted on rows with known outcomes, but none of the {len(rows):,} rows "
            "has one.\n  Score a trained run (run=RUN), whose validation rows are used then, or leave it out."
        )


def adjust_out_of_fold(
    predicted: Predictions, features: Floats, form: Floats | None = None, *, seed: int = 0
) -> Adjusted:
    """Adjust predictions with what the labels of the other folds say; within one fold, of other prompts.

    Args:
        predicted: the model's own probabilities.
        features: ``[n, features]`` of ``form_features`` for the same rows.
        form: ``[n, 3]`` predictions of a regression on form that was fitted on none of these rows. None: it
            is fitted out of fold like the rest.
        seed: seed of the division into parts within one fold.

    Returns:
        Empty when all labelled rows belong to one part.

    Raises:
        UserError: a row of probabilities is not a distribution.
    """
    cluster = cluster_numbers(predicted.groups, len(predicted))
    several = len(np.unique(predicted.folds[predicted.labelled])) > 1
    part = predicted.folds if several else random_parts(cluster, seed)
    if len(np.unique(part[predicted.labelled])) < 2:
        return {}
    probabilities = checked_probabilities(predicted.probabilities)
    once = one_order(predicted)
    return adjust_parts(probabilities, predicted.labels, part, cluster, features, form, once)


def apply(calibration: Calibration, members: Sequence[Predictions], features: Floats) -> Adjusted:
    """Adjust the predictions of several models for rows that the calibration was not fitted on."""
    probabilities = [checked_probabilities(member.probabilities) for member in members]
    once = np.mean([one_order(member) for member in members], axis=0)
    return calibration.adjust(probabilities, features, once)


def choose(predicted: Predictions, candidates: Adjusted, config: EvalConfig) -> tuple[Predictions, Method]:
    """Replace the probabilities by those of the requested method; also return the method.

    When the method could not be fitted, this is logged and the predictions remain as they are, so that a
    finished training or scoring is not lost.
    """
    method = requested_method(config)
    if method == "none":
        return predicted, method
    if method not in candidates:
        log.warning(
            "%s has no effect: all labelled rows belong to one group of prompts, so nothing could be fitted "
            "on other rows than it is applied to; the predictions are the model's own",
            _setting(config),
        )
        return predicted, "none"
    return adjusted(predicted, candidates[method]), method


def compare(predicted: Predictions, candidates: Adjusted, *, seed: int = 0) -> dict[str, AdjustedScore]:
    """Score the model's own predictions and each candidate on the labelled rows, and compare them.

    Also with the baseline, if the predictions have BASELINE_COLUMNS. Empty without labels.
    """
    known = predicted.labelled
    if not known.any():
        return {}
    labels = predicted.labels[known]
    cluster = cluster_numbers(predicted.take(known).groups, len(labels))
    losses = {"raw": log_losses(predicted.probabilities[known].astype(np.float64), labels)}
    losses |= {method: log_losses(p[known], labels) for method, p in candidates.items()}
    baseline = stored_columns(predicted.take(known), BASELINE_COLUMNS)
    regression = None if baseline is None else log_losses(baseline, labels)

    def difference(own: Floats, other: Floats | None) -> PairedDifference | None:
        return None if other is None else paired_bootstrap(own, other, cluster, seed=seed)

    return {
        name: AdjustedScore(
            log_loss=float(own.mean()),
            against_raw=difference(own, None if name == "raw" else losses["raw"]),
            against_logistic_regression=difference(own, regression),
        )
        for name, own in losses.items()
    }


def fit_calibration(parts: Sequence[Predictions], form: Sequence[Regression]) -> Calibration:
    """Fit temperature and stack on labelled predictions of rows that the models were not trained on.

    The temperature is fitted on all predictions, whichever model they are of. Predictions for equal ids are
    averaged before the stack is fitted, as those of new rows will be.

    Args:
        parts: the models' own probabilities, with FORM_COLUMNS; at least one row is labelled.
        form: regressions on form that will predict new rows.
    """
    pooled = concatenate(parts)
    pooled = pooled.take(pooled.labelled)
    temperature = fit_temperature(pooled.probabilities.astype(np.float64), pooled.labels)
    calibrated = apply_temperature(pooled.probabilities.astype(np.float64), temperature)
    by_form = np.column_stack([pooled.extra[name] for name in FORM_COLUMNS]).astype(np.float64)
    number, ids = pd.factorize(np.array(pooled.ids, dtype=object))
    inputs = np.column_stack([calibrated, by_form, one_order(pooled)])
    mean = pd.DataFrame(inputs).groupby(number).mean().to_numpy()
    labels, cluster = np.empty((2, len(ids)), dtype=np.int64)
    labels[number], cluster[number] = pooled.labels, cluster_numbers(pooled.groups, len(pooled))
    stack = fit_stack(mean[:, :3], mean[:, 3:6], labels, mean[:, 6], cluster)
    return Calibration(temperature, stack, tuple(form), len(ids))


def save_calibration(run: Run, calibration: Calibration, predicted: Predictions, config: EvalConfig) -> None:
    """Write ``calibration.json`` with a description of the predictions that it was fitted on."""
    values = {
        "version": VERSION,
        "method": requested_method(config),
        "swap": config.swap,
        "data": run.data_description().get("fingerprint"),
        **_fingerprints(predicted),
        **calibration.to_json(),
    }
    write_json(run.calibration, values)


def load_calibration(
    runs: Sequence[Run], scored: Sequence[Comparison], config: EvalConfig
) -> Calibration | None:
    """The calibration for rows that are new to trained runs, from the runs' own validation rows.

    That of a single run is read from its ``calibration.json``; for several runs, one is fitted on the
    stored predictions of all. Predictions of rows that are labelled and among ``scored`` are not used; None
    if no others are left.

    Raises:
        UserError: a run has no calibration, or one that was fitted on other rows than it predicted.
    """
    found = [_load_stored(run) for run in runs]
    for run, (_, _, swap) in zip(runs, found, strict=True):
        if swap != config.swap:
            log.warning(
                "%s: temperature and stack were fitted with eval.swap=%s and are applied to predictions with "
                "eval.swap=%s, which may be less extreme", run.calibration, swap, config.swap,
            )  # fmt: skip
    used = {row.id for row in scored if row.label is not None}
    parts = [stored.take(np.array([id not in used for id in stored.ids])) for _, stored, _ in found]
    if not any(part.labelled.any() for part in parts):
        log.info("only predictions of the rows to score are stored: these are adjusted out of fold")
        return None
    if len(runs) == 1 and len(parts[0]) == len(found[0][1]):
        return found[0][0]
    sources = [run.data_description().get("fingerprint") for run in runs]
    parts = [  # ids are unique within a data set only
        dataclasses.replace(part, ids=[f"{source} {id}" for id in part.ids])
        for source, part in zip(sources, parts, strict=True)
    ]
    return fit_calibration(parts, [form for calibration, _, _ in found for form in calibration.form])


def _load_stored(run: Run) -> tuple[Calibration, Predictions, str]:
    """Calibration of a run, the predictions that it was fitted on, and the ``eval.swap`` of these."""
    again = f"  Score the run again: python train.py resume={run.path}"
    if run.trained_rows_scored() != 0:
        raise UserError(
            f"{run.path}: its predictions are of rows that it was trained on, which say nothing about the "
            "calibration of other predictions.\n  Train a run without debug.evaluate_on_train, or leave "
            "eval.calibrate and eval.stack out."
        )
    values = run.calibration_description()
    if not values or not run.predictions.is_file():
        missing = run.predictions if values else run.calibration
        raise UserError(
            f"{missing}: missing; eval.calibrate and eval.stack adjust new rows by what was fitted on the "
            f"run's validation rows.\n{again}"
        )
    stored = unadjusted(read_predictions(run.predictions))
    for name, value in _fingerprints(stored).items():
        if values.get(name) != value:
            what = "other rows" if name == "ids" else "other predictions of the same rows"
            raise UserError(
                f"{run.calibration}: fitted on {what} than {run.predictions} holds:\n"
                f"  {values.get('rows')} rows with fingerprint {values.get(name)!s:.12}, "
                f"but {len(stored)} rows with {value:.12}.\n{again}"
            )
    try:
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, not {VERSION}")
        return Calibration.from_json(values), stored, str(values["swap"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.calibration}: damaged or of another version ({error}).\n{again}") from None


def _fingerprints(predicted: Predictions) -> dict[str, str]:
    """SHA-256 of the sorted ids, and of labels and probabilities in that order."""
    order = np.argsort(np.array(predicted.ids, dtype=str), kind="stable")
    content = hashlib.sha256(predicted.labels[order].astype("<i8").tobytes())
    content.update(predicted.probabilities[order].astype("<f4").tobytes())
    ids = hashlib.sha256("\n".join(sorted(predicted.ids)).encode())
    return {"ids": ids.hexdigest(), "predictions": content.hexdigest()}


def _setting(config: EvalConfig) -> str:
    return "eval.stack=true" if config.stack else f"eval.calibrate={config.calibrate}"
