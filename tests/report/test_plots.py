"""Figures show the numbers they were given."""

from __future__ import annotations

import numpy as np
import pytest

from lmsys_unsloth.report import plots


def known_case(n: int = 400):
    random = np.random.default_rng(0)
    p = random.dirichlet([1, 1, 1], n)
    labels = (random.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return p, labels


def test_reliability_points_are_means_of_equally_many_rows():
    p, labels = known_case()
    axes = plots.reliability(p[:, 0], labels == 0, 0).axes[0]
    x, share = axes.lines[1].get_data()
    order = np.argsort(p[:, 0], kind="stable")
    assert x == pytest.approx([part.mean() for part in np.split(p[order, 0], 10)])
    assert share == pytest.approx([part.mean() for part in np.split(labels[order] == 0, 10)])


def test_confusion_counts():
    p = np.eye(3)[[0, 0, 1, 2]]
    axes = plots.confusion(p, np.array([0, 1, 1, 2])).axes[0]
    counts = [text.get_text() for text in axes.texts[::2]]
    assert counts == ["1", "0", "0", "1", "1", "0", "0", "0", "1"]
    assert [text.get_text() for text in axes.texts[1::2]][:5] == ["100%", "0%", "0%", "50%", "50%"]


def test_swap_scatter_draws_a_limited_number_of_points():
    p, _ = known_case(plots.MOST_POINTS + 1)
    assert len(plots.swap_scatter(p, p).axes[0].collections[0].get_offsets()) == plots.MOST_POINTS
    assert len(plots.swap_scatter(p[:9], p[:9]).axes[0].collections[0].get_offsets()) == 9


def test_learning_curve_ignores_entries_without_a_loss():
    curve = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 9.0}]
    axes = plots.learning(curve).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.5]


def test_no_data_no_figures():
    assert plots.all_figures(np.empty((0, 3)), np.empty(0, dtype=int), None, []) == {}
    unlabelled = plots.all_figures(known_case()[0], np.full(400, -1), None, [{"step": 1}])
    assert set(unlabelled) == {"histogram_a", "histogram_b", "histogram_tie"}


def test_png_and_svg():
    _, figure = plots.all_figures(*known_case(), None, [])["reliability_tie"]
    assert plots.png(figure).startswith(b"\x89PNG")
    svg = plots.themed_svg(figure, "x")
    assert svg.startswith('<svg viewBox="0 0 ') and "var(--tie)" in svg and "var(--font)" in svg
    assert "<style" not in svg and "DejaVu" not in svg
    assert svg == plots.themed_svg(figure, "x")
    assert svg != plots.themed_svg(figure, "y")  # identifiers differ between figures of one page
