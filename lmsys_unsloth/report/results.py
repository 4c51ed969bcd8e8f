"""Predictions to files: what every scoring ends with, whatever model it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate import baselines, metrics, predictions
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scoring import ScoringSpeed
from lmsys_unsloth.prompting.prepared import Prepared
from lmsys_unsloth.report import page


@dataclass(frozen=True)
class Outcome:
    """Result of an evaluation, ready to be shown and tracked."""

    metrics: dict[str, Any]
    predictions: Predictions
    rows: Sequence[Comparison]
    """Scored rows, in the order of ``predictions``."""


def report_scoring(
    run: Run, config: Config, prepared: Prepared, predicted: Predictions, speed: ScoringSpeed
) -> Outcome:
    """Report the predictions of one model, next to baselines that learn from its training rows."""
    further: dict[str, Any] = {"scoring": speed.as_dict()}
    if prepared.overlap is not None:
        further["trained_rows"] = dataclasses.asdict(prepared.overlap)
    rows = [row.comparison for row in prepared.scored]
    baseline = {}
    if prepared.baseline_rows:
        labels = [row.label for row in prepared.baseline_rows if row.label is not None]
        baseline = {
            "train_prior": metrics.class_prior(np.array(labels, dtype=np.int64)),
            "baseline_probabilities": baselines.logistic_regression(prepared.baseline_rows, rows),
        }
    return report_results(run, config, predicted, rows, further, **baseline)


def report_results(
    run: Run,
    config: Config,
    predicted: Predictions,
    rows: Sequence[Comparison],
    further: Mapping[str, Any] | None = None,
    **baseline: Any,
) -> Outcome:
    """Write predictions, metrics and report, and print the summary.

    Rows without any label give ``submission.csv`` too, and metrics without a score.

    Args:
        run: where to write.
        config: the seed is used.
        predicted: predictions of ``rows``.
        rows: scored rows, in the order of ``predicted``.
        further: metrics that are known already, such as the speed.
        baseline: ``train_prior`` and ``baseline_probabilities`` as in
            :func:`~lmsys_unsloth.evaluate.metrics.compute_metrics`.
    """
    result = {
        **metrics.score_predictions(
            predicted, seed=config.seed, true_probabilities=_true_probabilities(rows), **baseline
        ),
        **(further or {}),
    }
    predictions.write_predictions(run.predictions, predicted)
    write_json(run.metrics, result)
    if not predicted.labelled.any():
        predictions.write_submission(run.submission, predicted)
    page.write_report(run, result, predicted, rows)
    page.print_summary(result)
    if not predicted.labelled.any():
        print(f"{len(predicted)} rows predicted: {run.submission}")
    print(f"run directory: {run.path}")
    return Outcome(result, predicted, rows)


def _true_probabilities(rows: Sequence[Comparison]) -> NDArray[np.float64] | None:
    known = [row.true_probabilities for row in rows if row.true_probabilities is not None]
    return np.array(known) if rows and len(known) == len(rows) else None
