"""How sure a mean is when rows come in groups: bootstrap intervals that resample whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmsys_unsloth.evaluate.calibration import Floats, Ints

REPLICATES = 4000
"""Enough for two digits of an interval's width: its Monte Carlo error is about 3%."""
CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def cluster_numbers(groups: Sequence[str] | None, n: int) -> Ints:
    """Group names as numbers [n]; without groups each row stands alone."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} rows; one group name is needed for each row")
    number: dict[str, int] = {}  # by first appearance: other names for the same groups change nothing
    return np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)


def bootstrap_means(values: Floats, cluster: Ints, *, seed: int, replicates: int) -> Floats:
    """Means [replicates] of resamples that draw whole clusters with replacement."""
    numbers, index = np.unique(cluster, return_inverse=True)
    sums = np.bincount(index, weights=values)
    sizes = np.bincount(index).astype(np.float64)
    random = np.random.default_rng(seed)
    means = np.empty(replicates)
    for k in range(replicates):
        drawn = random.integers(0, len(numbers), len(numbers))
        means[k] = sums[drawn].sum() / sizes[drawn].sum()
    return means


def bootstrap_interval(
    values: Floats, cluster: Ints, *, seed: int = 0, replicates: int = REPLICATES
) -> list[float] | None:
    """95% percentile interval [low, high] of the mean; None when there are fewer than two clusters.

    Rows of one prompt are alike, so resampling rows would make the interval too narrow.
    """
    if len(np.unique(cluster)) < 2:
        return None
    means = bootstrap_means(values, cluster, seed=seed, replicates=replicates)
    low, high = np.quantile(means, TAILS)
    return [float(low), float(high)]


def paired_bootstrap(first: Floats, second: Floats, cluster: Ints, *, seed: int = 0) -> dict[str, Any]:
    """Difference of two runs on the same rows, from their losses [n]; below zero the first is better.

    ``first_better`` is the share of resamples in which the first run has the lower loss.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"paired comparison of {len(first)} and {len(second)} rows; both runs need the same rows"
        )
    difference = first - second
    result: dict[str, Any] = {
        "difference": float(difference.mean()) if len(difference) else None,
        "difference_ci": None,
        "first_better": None,
    }
    if len(np.unique(cluster)) >= 2:
        means = bootstrap_means(difference, cluster, seed=seed, replicates=REPLICATES)
        result["difference_ci"] = [float(q) for q in np.quantile(means, TAILS)]
        result["first_better"] = float((means < 0).mean() + (means == 0).mean() / 2)
    return result
