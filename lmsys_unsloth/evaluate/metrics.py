"""Compute metrics from probabilities: log loss with its uncertainty, baselines, calibration.

Every number in the terminal, in ``metrics.json``, in the report and in wandb is computed here, once, in
float64 from probabilities of shape ``[n, 3]`` in ``comparison.LABELS`` order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, xlogy

from lmsys_unsloth.core.arrays import Floats, Ints
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.data.form.regression import class_prior
from lmsys_unsloth.evaluate import calibration
from lmsys_unsloth.evaluate.bootstrap import (
    PairedDifference,
    bootstrap_interval,
    cluster_numbers,
    paired_bootstrap,
    random_parts,
)
from lmsys_unsloth.evaluate.calibration import EPSILON, log_losses
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    stored_columns,
    swap_views,
    unadjusted,
)
from lmsys_unsloth.evaluate.scores import (
    Baselines,
    FoldScore,
    Metrics,
    Score,
    SwapConsistency,
    TemperatureScaling,
)

SUM_TOLERANCE = 1e-4
"""Largest accepted distance of a row's sum from 1: that of float32 softmax is 1e-6, of rounded files 1e-4."""


def compute_metrics(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    *,
    groups: Sequence[str] | None = None,
    train_prior: NDArray[Any] | Sequence[float] | None = None,
    true_probabilities: NDArray[Any] | None = None,
    baseline_probabilities: NDArray[Any] | None = None,
    form_probabilities: NDArray[Any] | None = None,
    raw_probabilities: NDArray[Any] | None = None,
    folds: Sequence[int] | NDArray[Any] | None = None,
    seed: int = 0,
) -> Metrics:
    """Score predictions of rows whose outcomes are known.

    Args:
        probabilities: ``[n, 3]``, each row summing to 1.
        labels: ``[n]``, index into LABELS.
        groups: ``[n]`` names; rows of one prompt share a name and are resampled together.
        train_prior: ``[3]`` class shares of the training rows. Without it the class-prior baseline uses the
            evaluated rows' own shares, the best constant prediction.
        true_probabilities: ``[n, 3]`` of simulated rows, from which the best possible log loss follows.
        baseline_probabilities: ``[n, 3]`` of ``baselines.fit_baseline`` on the same rows.
        form_probabilities: ``[n, 3]`` of ``fit_form`` on the same rows.
        raw_probabilities: ``[n, 3]`` before calibration, for the temperature; None: ``probabilities``.
        folds: ``[n]`` fold of each row; several folds are also scored one by one.
        seed: seed of the bootstrap and of the parts on which the temperature is fitted.

    Raises:
        UserError: a probability is NaN, negative or above 1, or a row does not sum to 1.
        ValueError: shapes do not match, or a label is outside 0, 1, 2.

    >>> compute_metrics(np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]]), np.array([0, 1])).score.accuracy
    1.0
    """
    p = checked_probabilities(probabilities)
    y = checked_labels(labels, len(p))
    cluster = cluster_numbers(groups, len(p))
    if not len(p):
        return Metrics()
    losses = log_losses(p, y)
    by_fold = _score_folds(losses, np.zeros(len(p)) if folds is None else np.asarray(folds))
    part = np.asarray(folds, dtype=np.int64) if by_fold else random_parts(cluster, seed)
    raw = p if raw_probabilities is None else checked_probabilities(raw_probabilities)
    prior = class_prior(y) if train_prior is None else np.asarray(train_prior, dtype=np.float64)
    constant = float(log_losses(checked_probabilities(np.tile(prior, (len(y), 1))), y).mean())
    regression, against_regression = _baseline(losses, y, cluster, baseline_probabilities, seed)
    form, against_form = _baseline(losses, y, cluster, form_probabilities, seed)
    best_possible, expected = (None, None) if true_probabilities is None else _truth(p, true_probabilities)
    score = _score(
        p, y, log_loss_ci=bootstrap_interval(losses, cluster, seed=seed), n_groups=len(np.unique(cluster)),
        baselines=Baselines(float(np.log(len(LABELS))), constant, regression, form),
        against_logistic_regression=against_regression, against_form=against_form,
        scaling=_scale_temperature(raw, y, part),
        class_prior_source="evaluated rows" if train_prior is None else "training rows",
        best_possible=best_possible, expected_log_loss=expected, folds=by_fold,
        fold_std=float(np.std([fold.log_loss for fold in by_fold], ddof=1)) if by_fold else None,
    )  # fmt: skip
    return Metrics(score)


def _score(p: Floats, y: Ints, **compared: Any) -> Score:
    """Combine what follows from the rows' probabilities and labels alone with the other fields of Score."""
    log_loss, most_probable = float(log_losses(p, y).mean()), p.argmax(axis=1)
    errors = [calibration.smooth_calibration_error(p[:, k], (y == k).astype(np.float64)) for k in range(3)]
    return Score(
        log_loss=log_loss,
        accuracy=float((most_probable == y).mean()),
        n=len(p),
        brier=float(((p - np.eye(3)[y]) ** 2).sum(axis=1).mean()),
        smooth_ece=float(np.mean(errors)),
        smooth_ece_by_class=dict(zip(LABELS, errors, strict=True)),
        class_counts=_counts(y),
        predicted_counts=_counts(most_probable),
        mean_probabilities=dict(zip(LABELS, p.mean(axis=0).tolist(), strict=True)),
        leaderboard_estimate=0.890 * log_loss + 0.125,
        **compared,
    )


def score_predictions(
    predictions: Predictions,
    *,
    train_prior: NDArray[Any] | Sequence[float] | None = None,
    true_probabilities: NDArray[Any] | None = None,
    seed: int = 0,
) -> Metrics:
    """Score stored predictions with :func:`compute_metrics`; rows without a label are left out of the score.

    The baselines are those that the predictions have columns of. ``true_probabilities`` have one line for
    each row of ``predictions``, unlabelled rows included.
    """
    known = predictions.labelled
    rows = predictions.take(known)
    computed = compute_metrics(
        rows.probabilities,
        rows.labels,
        groups=rows.groups,
        train_prior=train_prior,
        true_probabilities=None if true_probabilities is None else true_probabilities[known],
        baseline_probabilities=stored_columns(rows, BASELINE_COLUMNS),
        form_probabilities=stored_columns(rows, FORM_COLUMNS),
        raw_probabilities=unadjusted(rows).probabilities,
        folds=rows.folds,
        seed=seed,
    )
    views = swap_views(predictions)
    swap = None if views is None else swap_consistency(*views)
    return dataclasses.replace(computed, n_unlabelled=int((~known).sum()), swap=swap)


def swap_consistency(forward: Floats, swapped: Floats) -> SwapConsistency:
    """Compare predictions ``[n, 3]`` of both orders; those of swapped responses are in the original order.

    >>> swap_consistency(np.array([[0.6, 0.3, 0.1]]), np.array([[0.4, 0.5, 0.1]])).flips
    1.0
    """
    change = forward - swapped
    return SwapConsistency(
        n=len(forward),
        mean_shift=float(np.abs(change).sum(axis=1).mean() / 2),
        flips=float((forward.argmax(axis=1) != swapped.argmax(axis=1)).mean()),
        first_position_bias=float((change[:, 0] - change[:, 1]).mean() / 2),
    )


def checked_probabilities(probabilities: NDArray[Any]) -> Floats:
    """Return the probabilities as float64, or raise an error that names the first invalid row."""
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != len(LABELS):
        raise ValueError(f"probabilities have shape {p.shape}; expected [n, {len(LABELS)}] for {LABELS}")
    bad: NDArray[np.bool_] = np.asarray(~np.isfinite(p).all(axis=1))
    if bad.any():
        raise UserError(
            f"probabilities of {_rows(bad)} are not finite: {p[bad][0].tolist()}. Every prediction must be "
            "a number; a model that overflows needs model.dtype=bfloat16 or float32 (Gemma 2 overflows "
            "in float16)."
        )
    bad = (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE)
    if bad.any():
        raise UserError(
            f"probabilities of {_rows(bad)} are not a distribution: {p[bad][0].tolist()} sums to "
            f"{p[bad][0].sum():.6g}. Each row must lie in 0…1 and sum to 1; apply softmax over the three "
            "answers."
        )
    return p


def checked_labels(labels: NDArray[Any], n: int) -> Ints:
    """Return the labels as int64, or raise ValueError when their shape is not ``[n]`` or a value is wrong."""
    y = np.asarray(labels)
    if y.shape != (n,):
        raise ValueError(f"labels have shape {y.shape}; expected [{n}], one for each row of probabilities")
    if n and (y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(LABELS)):
        raise ValueError(f"labels must be integers 0…2 for {LABELS}; drop unlabelled rows first")
    return y.astype(np.int64)


def _baseline(
    losses: Floats, y: Ints, cluster: Ints, probabilities: NDArray[Any] | None, seed: int
) -> tuple[float | None, PairedDifference | None]:
    """Log loss of a baseline, and the difference of ``losses`` from its own; None without predictions."""
    if probabilities is None:
        return None, None
    other = log_losses(checked_probabilities(probabilities), y)
    return float(other.mean()), paired_bootstrap(losses, other, cluster, seed=seed)


def _score_folds(losses: Floats, folds: NDArray[Any]) -> tuple[FoldScore, ...]:
    """Score of each fold; empty for a single one."""
    numbers = np.unique(folds)
    return tuple(
        FoldScore(int(fold), int((folds == fold).sum()), float(losses[folds == fold].mean()))
        for fold in (numbers if len(numbers) > 1 else ())
    )


def _scale_temperature(p: Floats, y: Ints, part: Ints) -> TemperatureScaling | None:
    if len(np.unique(part)) < 2:
        return None
    adjusted = calibration.temperature_out_of_fold(p, y, part)
    return TemperatureScaling(calibration.fit_temperature(p, y), float(log_losses(adjusted, y).mean()))


def _truth(p: Floats, true_probabilities: NDArray[Any]) -> tuple[float, float]:
    """Expected log losses under the true probabilities: of these themselves (entropy), and of ``p``."""
    truth = checked_probabilities(true_probabilities)
    expected = -xlogy(truth, np.clip(p, EPSILON, 1.0)).sum(axis=1)
    return float(entr(truth).sum(axis=1).mean()), float(expected.mean())


def _counts(classes: NDArray[Any]) -> dict[str, int]:
    return dict(zip(LABELS, np.bincount(classes, minlength=3).tolist(), strict=True))


def _rows(bad: NDArray[np.bool_]) -> str:
    count = int(bad.sum())
    return f"row {int(np.argmax(bad))}" + (f" and {count - 1} others" if count > 1 else "")
