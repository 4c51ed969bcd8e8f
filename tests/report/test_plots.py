"""Figures show the numbers that were passed to them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from lmsys_unsloth.report import plots


def known_case(n: int = 400):
    random = np.random.default_rng(0)
    p = random.dirichlet([1, 1, 1], n)
    labels = (random.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return p, labels


def test_reliability_points_are_means_of_equally_many_rows():
    p, labels = known_case()
    axes = plots.plot_reliability(p[:, 0], labels == 0, 0).axes[0]
    x, share = axes.lines[1].get_data()
    order = np.argsort(p[:, 0], kind="stable")
    assert x == pytest.approx([part.mean() for part in np.split(p[order, 0], 10)])
    outcomes = np.split(labels[order] == 0, 10)
    assert share == pytest.approx([part.mean() for part in outcomes])
    z = norm.ppf(0.975)
    for segment, part in zip(axes.collections[0].get_segments(), outcomes, strict=True):
        for limit in segment[:, 1]:  # Wilson's limits are where the score test is just significant
            distance = abs(part.mean() - limit) / np.sqrt(limit * (1 - limit) / len(part))
            assert distance == pytest.approx(z)


def test_confusion_matrix_shows_counts_and_shares_of_each_row():
    p = np.eye(3)[[0, 0, 1, 2]]
    axes = plots.plot_confusion(p, np.array([0, 1, 1, 2])).axes[0]
    counts = [text.get_text() for text in axes.texts[::2]]
    assert counts == ["1", "0", "0", "1", "1", "0", "0", "0", "1"]
    assert [text.get_text() for text in axes.texts[1::2]][:5] == ["100%", "0%", "0%", "50%", "50%"]


def test_swap_plot_draws_a_limited_number_of_points():
    p, _ = known_case(plots.MAX_POINTS + 1)
    assert len(plots.plot_swap(p, p).axes[0].collections[0].get_offsets()) == plots.MAX_POINTS
    assert len(plots.plot_swap(p[:9], p[:9]).axes[0].collections[0].get_offsets()) == 9


def test_learning_curve_ignores_entries_without_a_loss():
    curve = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 9.0}]
    axes = plots.plot_learning_curve(curve).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.5]


def test_the_best_step_of_the_early_stopping_set_is_marked():
    name = "early_stopping_loss"
    curve = [
        {"step": 1, "loss": 1.0},
        {"step": 1, name: 0.9},
        {"step": 2, "loss": 0.5},
        {"step": 2, name: 0.95},
    ]
    _, _, held_out, best = plots.plot_learning_curve(curve).axes[0].lines
    assert held_out.get_ydata().tolist() == [0.9, 0.95]
    assert (best.get_xdata().item(), best.get_ydata().item()) == (1, 0.9)


def test_figures_without_data_are_left_out():
    assert plots.plot_all(np.empty((0, 3)), np.empty(0, dtype=int), None, []) == {}
    unlabelled = plots.plot_all(known_case()[0], np.full(400, -1), None, [{"step": 1}])
    assert set(unlabelled) == {"histogram_a", "histogram_b", "histogram_tie"}


def test_png_is_valid_and_svg_takes_colours_and_font_from_the_page():
    _, figure = plots.plot_all(*known_case(), None, [])["reliability_tie"]
    assert plots.render_png(figure).startswith(b"\x89PNG")
    svg = plots.render_svg(figure, "x")
    assert svg.startswith('<svg viewBox="0 0 ') and "var(--tie)" in svg and "var(--font)" in svg
    assert "<style" not in svg and "DejaVu" not in svg
    assert svg == plots.render_svg(figure, "x")
    assert svg != plots.render_svg(figure, "y")  # identifiers differ between figures of one page
