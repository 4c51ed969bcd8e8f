"""Probabilities and labels → numbers. numpy, scipy and scikit-learn only; all sums in float64.

Everything that is said about a run in the terminal, in ``metrics.json``, in the report and in
wandb is computed here once, from probabilities of shape [n, 3] in ``comparisons.LABELS`` order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate import calibration
from lmsys_unsloth.evaluate.bootstrap import bootstrap_interval, cluster_numbers, paired_bootstrap
from lmsys_unsloth.evaluate.calibration import EPSILON, Floats, Ints, log_losses
from lmsys_unsloth.evaluate.predictions import Predictions, listed, swap_views

SUM_TOLERANCE = 1e-4
"""How far from 1 a row may sum: float32 softmax stays within 1e-6, rounded files within 1e-4."""

TEMPERATURE_PARTS = 5
LEADERBOARD_NOTE = "0.890 x CV + 0.125: one team's fit between its own CV and the public leaderboard"


def compute_metrics(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    *,
    groups: Sequence[str] | None = None,
    train_prior: NDArray[Any] | Sequence[float] | None = None,
    true_probabilities: NDArray[Any] | None = None,
    baseline_probabilities: NDArray[Any] | None = None,
    folds: Sequence[int] | NDArray[Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All numbers about one set of predictions, ready for JSON (a number that has no value is None).

    Args:
        probabilities: [n, 3] in LABELS order, each row summing to 1.
        labels: [n], index into LABELS.
        groups: [n] names; rows of one prompt share a name, and are resampled together.
        train_prior: [3] class shares of the training rows. Without it the class-prior baseline
            uses the evaluated rows' own shares: the best that any constant could have done.
        true_probabilities: [n, 3] of a simulated arena, which make the best possible score known.
        baseline_probabilities: [n, 3] of ``baselines.logistic_regression`` on the same rows.
        folds: [n] fold of each row; adds the spread over folds when there are several.
        seed: of the bootstrap and of the parts on which the temperature is fitted.

    Raises:
        UserError: a probability is NaN, negative or above 1, or a row does not sum to 1.
        ValueError: shapes that do not belong together, or a label outside 0, 1, 2.

    >>> compute_metrics(np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]]), np.array([0, 1]))["accuracy"]
    1.0
    """
    p = checked_probabilities(probabilities)
    y = checked_labels(labels, len(p))
    cluster = cluster_numbers(groups, len(p))
    losses = log_losses(p, y)
    result: dict[str, Any] = {
        "log_loss": _mean(losses),
        "log_loss_ci": bootstrap_interval(losses, cluster, seed=seed),
        "accuracy": _mean((p.argmax(axis=1) == y).astype(np.float64)),
        "n": len(p),
        "n_groups": len(np.unique(cluster)),
        "brier": _mean(brier_scores(p, y)),
        **_calibration_errors(p, y),
        "class_counts": _by_label(np.bincount(y, minlength=3)),
        "predicted_counts": _by_label(np.bincount(p.argmax(axis=1), minlength=3)),
        "mean_probabilities": _by_label(p.mean(axis=0)) if len(p) else None,
        "baselines": _baselines(y, train_prior, baseline_probabilities),
        "class_prior_source": "evaluated rows" if train_prior is None else "training rows",
        **_temperature(p, y, _temperature_parts(cluster, folds, seed)),
    }
    result["leaderboard_estimate"] = leaderboard_estimate(result["log_loss"])
    result["leaderboard_note"] = LEADERBOARD_NOTE
    if baseline_probabilities is not None and len(p):
        rival = log_losses(checked_probabilities(baseline_probabilities), y)
        result["against_logistic_regression"] = paired_bootstrap(losses, rival, cluster, seed=seed)
    if true_probabilities is not None and len(p):
        result |= _against_truth(p, checked_probabilities(true_probabilities))
    if folds is not None and len(np.unique(folds)) > 1:
        result |= spread_over_folds(losses, np.asarray(folds))
    return result


def score_predictions(predictions: Predictions, **known: Any) -> dict[str, Any]:
    """:func:`compute_metrics` on the labelled rows of stored predictions, with their groups, folds and swaps.

    Args:
        known: further arguments of :func:`compute_metrics`; arrays have one line for each row of
            ``predictions``, unlabelled ones included.
    """
    mask = predictions.labelled
    rows = predictions.take(mask)
    for name in ("true_probabilities", "baseline_probabilities"):
        if known.get(name) is not None:
            known[name] = np.asarray(known[name], dtype=np.float64)[mask]
    result = compute_metrics(rows.probabilities, rows.labels, groups=rows.groups, folds=rows.folds, **known)
    result["n_unlabelled"] = int((~mask).sum())
    views = swap_views(predictions)
    if views is not None:
        result["swap"] = swap_consistency(*views)
    return result


def compare(first: Predictions, second: Predictions, seed: int = 0) -> dict[str, Any]:
    """:func:`bootstrap.paired_bootstrap` of two runs' stored predictions for the same labelled rows.

    Adds both losses. Rows are matched by id, so their order may differ.

    Raises:
        UserError: the runs scored different rows, or disagree about a label.
    """
    p, q = first.take(first.labelled), second.take(second.labelled)
    unmatched = sorted(set(p.ids) ^ set(q.ids))
    if unmatched:
        raise UserError(
            f"the runs scored different rows: {listed(unmatched)} in one only ({len(unmatched)} rows). "
            "A paired comparison needs the same rows: the same data and fold, or both merged over all folds."
        )
    position = {id: k for k, id in enumerate(q.ids)}
    q = q.take(np.array([position[id] for id in p.ids], dtype=np.int64))
    differing = [id for id, one, other in zip(p.ids, p.labels, q.labels, strict=True) if one != other]
    if differing:
        raise UserError(
            f"the runs disagree on the label of {listed(differing)}; score them on the same file."
        )
    ours, theirs = (log_losses(checked_probabilities(run.probabilities), run.labels) for run in (p, q))
    return {
        "log_loss": [_mean(ours), _mean(theirs)],
        "n": len(p),
        **paired_bootstrap(ours, theirs, cluster_numbers(p.groups, len(p)), seed=seed),
    }


def swap_consistency(forward: Floats, swapped: Floats) -> dict[str, Any]:
    """How much predictions [n, 3] change when the bots change places (``swapped`` turned back already).

    ``mean_shift`` is the mean total variation distance, ``flips`` the share of rows whose most
    probable outcome changes, ``first_position_bias`` the mean probability a bot gains by being
    shown first (0 for an unbiased model, negative when the second place helps).

    >>> swap_consistency(np.array([[0.6, 0.3, 0.1]]), np.array([[0.4, 0.5, 0.1]]))["flips"]
    1.0
    """
    change = forward - swapped
    return {
        "n": len(forward),
        "mean_shift": float(np.abs(change).sum(axis=1).mean() / 2),
        "flips": float((forward.argmax(axis=1) != swapped.argmax(axis=1)).mean()),
        "first_position_bias": float((change[:, 0] - change[:, 1]).mean() / 2),
    }


def checked_probabilities(probabilities: NDArray[Any]) -> Floats:
    """The same numbers as float64, or an error that names the first row that is wrong."""
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
    bad = ((p < 0) | (p > 1 + SUM_TOLERANCE)).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE)
    if bad.any():
        raise UserError(
            f"probabilities of {_rows(bad)} are not a distribution: {p[bad][0].tolist()} sums to "
            f"{p[bad][0].sum():.6g}. Each row must lie in 0…1 and sum to 1; apply softmax over the three "
            "answers."
        )
    return p


def checked_labels(labels: NDArray[Any], n: int) -> Ints:
    """Labels as int64 of shape [n], or ValueError when the shape or a value is wrong."""
    y = np.asarray(labels)
    if y.shape != (n,):
        raise ValueError(f"labels have shape {y.shape}; expected [{n}], one for each row of probabilities")
    if n and (y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(LABELS)):
        raise ValueError(f"labels must be integers 0…2 for {LABELS}; drop unlabelled rows first")
    return y.astype(np.int64)


def class_prior(labels: NDArray[Any]) -> Floats:
    """Class shares [3] of training labels; one is added to each count if a class never occurs.

    >>> class_prior(np.array([0, 0, 1, 2])).tolist()
    [0.5, 0.25, 0.25]
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=3).astype(np.float64)
    if (counts == 0).any():
        counts += 1
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def brier_scores(probabilities: Floats, labels: Ints) -> Floats:
    """Squared distance [n] of each row from its one-hot label, summed over the classes: 0 best, 2 worst."""
    return np.asarray(((probabilities - np.eye(3)[labels]) ** 2).sum(axis=1), dtype=np.float64)


def leaderboard_estimate(log_loss: float | None) -> float | None:
    """What one team's fit between CV and the public leaderboard says; see :data:`LEADERBOARD_NOTE`."""
    return None if log_loss is None else 0.890 * log_loss + 0.125


def spread_over_folds(losses: Floats, folds: NDArray[Any]) -> dict[str, Any]:
    """Loss of each fold, and its standard deviation over the folds."""
    numbers = [int(fold) for fold in np.unique(folds)]
    values = [float(losses[folds == fold].mean()) for fold in numbers]
    per_fold = [
        {"fold": fold, "n": int((folds == fold).sum()), "log_loss": value}
        for fold, value in zip(numbers, values, strict=True)
    ]
    return {"folds": per_fold, "fold_std": float(np.std(values, ddof=1))}


def _baselines(y: Ints, train_prior: Any, regression: NDArray[Any] | None) -> dict[str, float | None]:
    prior = class_prior(y) if train_prior is None else np.asarray(train_prior, dtype=np.float64)
    constant = checked_probabilities(np.tile(prior, (len(y), 1))) if len(y) else np.empty((0, 3))
    baselines = {"uniform": float(np.log(len(LABELS))), "class_prior": _mean(log_losses(constant, y))}
    if regression is not None:
        baselines["logistic_regression"] = _mean(log_losses(checked_probabilities(regression), y))
    return baselines


def _calibration_errors(p: Floats, y: Ints) -> dict[str, Any]:
    per_class = [calibration.smooth_calibration_error(p[:, k], (y == k).astype(np.float64)) for k in range(3)]
    if not len(p):
        return {"smooth_ece": None, "smooth_ece_by_class": None}
    return {"smooth_ece": float(np.mean(per_class)), "smooth_ece_by_class": _by_label(np.array(per_class))}


def _temperature_parts(cluster: Ints, folds: Any, seed: int) -> Ints:
    """Parts for fitting out of fold: the folds when there are several, else random groups of prompts."""
    if folds is not None and len(np.unique(folds)) > 1:
        return np.asarray(folds, dtype=np.int64)
    numbers, index = np.unique(cluster, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    return np.asarray(shuffled[index] % TEMPERATURE_PARTS, dtype=np.int64)


def _temperature(p: Floats, y: Ints, part: Ints) -> dict[str, Any]:
    """The temperature for later use (fitted on all rows), and an honest loss (fitted on other rows)."""
    if len(np.unique(part)) < 2:
        return {"temperature": None, "log_loss_after_temperature": None}
    adjusted = calibration.temperature_out_of_fold(p, y, part)
    return {
        "temperature": calibration.fit_temperature(p, y),
        "log_loss_after_temperature": _mean(log_losses(adjusted, y)),
    }


def _against_truth(p: Floats, truth: Floats) -> dict[str, float | None]:
    """Expected losses under the true probabilities: of a perfect predictor, and of this one."""
    entropy = -(truth * np.log(np.clip(truth, EPSILON, 1.0))).sum(axis=1)
    cross_entropy = -(truth * np.log(np.clip(p, EPSILON, 1.0))).sum(axis=1)
    return {"best_possible": _mean(entropy), "expected_log_loss": _mean(cross_entropy)}


def _by_label(values: NDArray[Any]) -> dict[str, Any]:
    return dict(zip(LABELS, values.tolist(), strict=True))


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _rows(bad: NDArray[np.bool_]) -> str:
    count = int(bad.sum())
    return f"row {int(np.argmax(bad))}" + (f" and {count - 1} others" if count > 1 else "")
