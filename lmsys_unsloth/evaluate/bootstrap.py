"""Bootstrap intervals of mean losses that resample whole groups of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lmsys_unsloth.core.arrays import Floats, Ints

Interval = tuple[float, float]
"""Lower and upper end of a 95% confidence interval."""

REPLICATES = 4000
"""Number of resamples: the Monte Carlo error of an interval's width is about 3%."""

TAILS = (0.025, 0.975)
"""Quantiles of the resampled means at the ends of a 95% percentile interval."""

PARTS = 5
"""Number of parts into which :func:`random_parts` divides rows that have no folds."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of two models' mean losses on the same rows; negative when the first is better."""

    difference: float
    difference_ci: Interval | None
    """None when there are fewer than two groups."""
    first_better: float | None
    """Share of resamples in which the first model has the lower loss; None like the interval."""


def cluster_numbers(groups: Sequence[str] | None, n: int) -> Ints:
    """Group names as numbers ``[n]`` in order of first appearance; without groups every row is its own."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} rows; one group name is needed for each row")
    return np.asarray(pd.factorize(np.array(groups, dtype=object))[0], dtype=np.int64)


def random_parts(cluster: Ints, seed: int = 0) -> Ints:
    """Divide rows at random into :data:`PARTS` parts of whole groups; part of each row ``[n]``."""
    numbers, index = np.unique(cluster, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    return np.asarray(shuffled[index] % PARTS, dtype=np.int64)


def bootstrap_means(values: Floats, cluster: Ints, *, seed: int, replicates: int) -> Floats:
    """Means ``[replicates]`` of resamples that draw whole clusters with replacement."""
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
) -> Interval | None:
    """95% percentile interval of the mean; None when there are fewer than two clusters.

    Rows that share a prompt are correlated, so resampling single rows would make the interval too narrow.
    """
    if len(np.unique(cluster)) < 2:
        return None
    return _interval(bootstrap_means(values, cluster, seed=seed, replicates=replicates))


def paired_bootstrap(first: Floats, second: Floats, cluster: Ints, *, seed: int = 0) -> PairedDifference:
    """Compare the losses ``[n]`` of two models on the same rows; there must be at least one row."""
    if first.shape != second.shape:
        raise ValueError(
            f"paired comparison of {len(first)} and {len(second)} rows; both runs need the same rows"
        )
    difference = first - second
    mean = float(difference.mean())
    if len(np.unique(cluster)) < 2:
        return PairedDifference(mean, None, None)
    means = bootstrap_means(difference, cluster, seed=seed, replicates=REPLICATES)
    first_better = float((means < 0).mean() + (means == 0).mean() / 2)
    return PairedDifference(mean, _interval(means), first_better)


def _interval(means: Floats) -> Interval:
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)
