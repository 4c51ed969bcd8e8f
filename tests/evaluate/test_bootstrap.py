"""Intervals keep their promise, and rows of one prompt are not counted as independent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmsys_unsloth.evaluate import bootstrap, calibration


def random_case(n: int, seed: int = 0):
    """True probabilities, and labels drawn from them."""
    random = np.random.default_rng(seed)
    truth = random.dirichlet([1, 1, 1], n)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return truth, labels


def test_interval_covers_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        truth, labels = random_case(200, seed + 100)
        losses = calibration.log_losses(truth, labels)
        low, high = bootstrap.bootstrap_interval(losses, np.arange(200), seed=seed, replicates=300)
        # the target is the expected loss over both rows and labels: 5/6 for a flat Dirichlet of three
        hits += low <= 1 / 2 + 1 / 3 <= high
    assert 88 <= hits <= 99


def test_grouped_interval_is_wider_when_rows_of_a_prompt_repeat():
    values = np.repeat(np.random.default_rng(0).normal(1, 0.5, 50), 10)
    alone = bootstrap.bootstrap_interval(values, np.arange(500))
    grouped = bootstrap.bootstrap_interval(values, np.repeat(np.arange(50), 10))
    assert (grouped[1] - grouped[0]) / (alone[1] - alone[0]) == pytest.approx(math.sqrt(10), rel=0.25)


def test_paired_bootstrap():
    truth, labels = random_case(1000, 5)
    good = calibration.log_losses(truth, labels)
    bad = calibration.log_losses(np.full((1000, 3), 1 / 3), labels)
    got = bootstrap.paired_bootstrap(good, bad, np.arange(1000))
    assert got.difference == pytest.approx(good.mean() - bad.mean())
    assert got.difference_ci[1] < 0
    assert got.first_better == 1.0
    same = bootstrap.paired_bootstrap(good, good, np.arange(1000))
    assert (same.difference, same.first_better) == (0.0, 0.5)
    with pytest.raises(ValueError, match="same rows"):
        bootstrap.paired_bootstrap(good, bad[:-1], np.arange(1000))


def test_one_prompt_gives_no_interval():
    values = np.array([1.0, 2.0])
    assert bootstrap.bootstrap_interval(values, np.array([0, 0])) is None
    assert bootstrap.paired_bootstrap(values, values, np.array([3, 3])).difference_ci is None


def test_names_of_groups_do_not_matter():
    first = bootstrap.cluster_numbers(["x", "y", "x", "z"], 4)
    assert first.tolist() == bootstrap.cluster_numbers(["9", "1", "9", "5"], 4).tolist() == [0, 1, 0, 2]
    assert bootstrap.cluster_numbers(None, 3).tolist() == [0, 1, 2]


def test_two_prompts_give_an_interval():
    values = np.array([1.0, 2.0])
    assert bootstrap.bootstrap_interval(values, np.array([0, 1])) == (1.0, 2.0)
    assert bootstrap.paired_bootstrap(values, values - 1, np.array([3, 5])).difference_ci == (1.0, 1.0)


@pytest.mark.parametrize("drawn", range(5))
def test_every_prompt_is_drawn_as_often(drawn):
    values = np.eye(5)[drawn]
    means = bootstrap.bootstrap_means(values, np.arange(5), seed=1, replicates=4000)
    # each mean is a fifth of a binomial count of five draws: variance 0.2 · 0.8 / 5
    assert means.mean() == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / 5 / 4000))


def test_random_parts_have_whole_prompts_and_are_even():
    cluster = np.repeat(np.arange(23), 3)
    part = bootstrap.random_parts(cluster, seed=3)
    first = part[::3]
    assert np.array_equal(part, np.repeat(first, 3))
    sizes = np.bincount(first, minlength=bootstrap.PARTS)
    assert len(sizes) == bootstrap.PARTS and sizes.max() - sizes.min() == 1
    assert not np.array_equal(first, bootstrap.random_parts(cluster, seed=4)[::3])
