"""Writing of the results of a scoring: predictions, metrics and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import UNLABELLED, Comparison, label_array
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import Regression, class_prior, fit_form
from lmsys_unsloth.data.selection import Overlap
from lmsys_unsloth.evaluate import adjustment, metrics, predictions
from lmsys_unsloth.evaluate.adjustment import Adjusted
from lmsys_unsloth.evaluate.baselines import fit_baseline
from lmsys_unsloth.evaluate.passes.partial_scores import delete_partial_scores
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    stored_columns,
    with_columns,
)
from lmsys_unsloth.evaluate.scores import Metrics, ModelScore, ScoringSpeed, WeightAverage
from lmsys_unsloth.evaluate.stacking import Calibration
from lmsys_unsloth.prompting.prepared import Prepared
from lmsys_unsloth.report import page


@dataclass(frozen=True)
class Outcome:
    """Result of an evaluation."""

    metrics: Metrics
    predictions: Predictions
    rows: Sequence[Comparison]
    """Scored rows, in the order of ``predictions``."""


def report_scoring(
    run: Run,
    config: Config,
    prepared: Prepared,
    predicted: Predictions,
    speed: ScoringSpeed,
    calibration: Calibration | None = None,
) -> Outcome:
    """Report the predictions of one model, with baselines that are fitted on its training rows.

    The predictions are calibrated and stacked by ``calibration``, which was fitted on other rows; without it,
    out of fold.
    """
    rows = [row.comparison for row in prepared.scored]
    prior = form = None
    candidates: Adjusted = {}
    needed = calibration is not None or predicted.labelled.any()
    features = form_features(rows if needed else [])
    if prepared.baseline_rows and needed:
        labels = label_array(prepared.baseline_rows)
        prior = class_prior(labels[labels != UNLABELLED])
        fitted = form_features(prepared.baseline_rows)
        form, baseline = fit_form(fitted, labels), fit_baseline(fitted, labels)
        predicted = with_columns(predicted, FORM_COLUMNS, form.predict_form(features))
        predicted = with_columns(predicted, BASELINE_COLUMNS, baseline.predict_form(features))
    if calibration is not None:
        candidates = adjustment.apply(calibration, [predicted], features)
    elif needed:
        candidates = adjustment.adjust_out_of_fold(
            predicted, features, stored_columns(predicted, FORM_COLUMNS), seed=config.seed
        )
    trained = prepared.overlap is not None and prepared.overlap.scored != 0
    return report_results(
        run, config, predicted, rows, candidates=candidates, form=None if trained else form,
        train_prior=prior, scoring=speed, trained_rows=prepared.overlap,
    )  # fmt: skip


def report_results(
    run: Run,
    config: Config,
    predicted: Predictions,
    rows: Sequence[Comparison],
    *,
    candidates: Adjusted | None = None,
    form: Regression | None = None,
    train_prior: NDArray[Any] | Sequence[float] | None = None,
    scoring: ScoringSpeed | None = None,
    trained_rows: Overlap | None = None,
    runs_compared: tuple[ModelScore, ...] = (),
    weight_average: WeightAverage | None = None,
) -> Outcome:
    """Write predictions, metrics and report, and print the summary.

    Rows without any label give ``submission.csv`` too, and metrics without a score. ``rows`` are in the
    order of ``predicted``, which holds the model's own probabilities, and those of baselines in columns. The
    model's own are replaced by those of ``candidates`` that ``eval.calibrate`` and ``eval.stack`` ask for;
    all candidates are scored. With ``form``, a regression for later rows like the one that gave the
    FORM_COLUMNS, ``calibration.json`` is written.
    ``train_prior`` is that of :func:`~lmsys_unsloth.evaluate.metrics.compute_metrics`; the other parts are
    added to the metrics.
    """
    candidates = candidates or {}
    compared = adjustment.compare(predicted, candidates, seed=config.seed)
    raw = predicted
    predicted, method = adjustment.choose(raw, candidates, config.eval)
    truth = [row.true_probabilities for row in rows if row.true_probabilities is not None]
    scored = metrics.score_predictions(
        predicted,
        train_prior=train_prior,
        true_probabilities=np.array(truth) if rows and len(truth) == len(rows) else None,
        seed=config.seed,
    )
    result = dataclasses.replace(
        scored,
        scoring=scoring,
        trained_rows=trained_rows,
        runs_compared=runs_compared,
        adjustment=method,
        adjusted=compared,
        weight_average=weight_average,
    )
    predictions.write_predictions(run.predictions, predicted)
    delete_partial_scores(run)
    if form is not None and predicted.labelled.any():
        adjustment.save_calibration(run, adjustment.fit_calibration([raw], [form]), raw, config.eval)
    write_json(run.metrics, result.to_json())
    if not predicted.labelled.any():
        predictions.write_submission(run.submission, predicted)
        print(f"{len(predicted)} rows predicted: {run.submission}")
    page.write_report(run, result, predicted, rows)
    page.print_summary(result)
    print(f"run directory: {run.path}")
    return Outcome(result, predicted, rows)
