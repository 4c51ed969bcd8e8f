"""Matplotlib figures of predictions and of training, sized to stay readable on a phone.

The colours below are those of PNG files and of the report's light theme; :func:`render_svg` replaces
them by the report's CSS variables, so that the same figure follows its dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from lmsys_unsloth.core.arrays import Floats, Ints
from lmsys_unsloth.data.comparison import LABELS

COLOURS = {
    "ink": "#1f2933", "muted": "#6b7785", "grid": "#dfe3e8",
    "a": "#2f6fde", "b": "#d3601a", "tie": "#2f8f57",
}  # fmt: skip
"""Colours by the name of the report's CSS variable."""

NAMES = ("A", "B", "tie")
"""How figures name the outcomes, in LABELS order."""

RELIABILITY_BINS = 10
"""Largest number of bins of a reliability diagram; each has at least 5 rows."""

HISTOGRAM_EDGES = np.linspace(0, 1, 21).tolist()
MAX_POINTS = 1500
"""Largest number of points in a scatter plot."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text
}


def plot_all(
    probabilities: Floats,
    labels: Ints,
    swap: tuple[Floats, Floats] | None,
    learning_curve: Sequence[dict[str, Any]],
) -> dict[str, tuple[str, Figure]]:
    """Draw every figure for which there are data: (text alternative, figure) by file name.

    Args:
        probabilities: [n, 3].
        labels: [n], -1 where unknown.
        swap: result of :func:`~lmsys_unsloth.evaluate.predictions.swap_views`.
        learning_curve: result of :meth:`~lmsys_unsloth.config.run_directory.Run.learning_curve`.
    """
    known = labels >= 0
    p, y = probabilities[known], labels[known]
    figures: dict[str, tuple[str, Figure]] = {}
    with mpl.rc_context(STYLE):
        for k, name in enumerate(LABELS):
            if len(p):
                alternative = f"Reliability of the probability of {NAMES[k]}"
                figures[f"reliability_{name}"] = (alternative, plot_reliability(p[:, k], y == k, k))
            if len(probabilities):
                alternative = f"Histogram of the probability of {NAMES[k]}"
                figures[f"histogram_{name}"] = (alternative, plot_histogram(probabilities[:, k], labels, k))
        if len(p):
            alternative = "Confusion matrix: known outcome against most probable outcome"
            figures["confusion"] = (alternative, plot_confusion(p, y))
        if swap is not None:
            alternative = "Probability of response A in first position against in second position"
            figures["swap"] = (alternative, plot_swap(*swap))
        if any("loss" in entry for entry in learning_curve):
            alternative = "Training loss and learning rate by step"
            figures["learning_curve"] = (alternative, plot_learning_curve(learning_curve))
    return finished(figures)


def finished(figures: dict[str, tuple[str, Figure]]) -> dict[str, tuple[str, Figure]]:
    """Compute the layout of figures once, not for each file format."""
    with mpl.rc_context(STYLE):
        for _, figure in figures.values():
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return figures


def plot_reliability(predicted: Floats, outcome: NDArray[np.bool_], k: int) -> Figure:
    """Plot observed frequency against mean predicted probability in bins of equally many rows.

    Vertical lines are 95% Wilson score intervals.
    """
    figure, axes = _square_subplot(2.9)
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, np.clip(len(order) // 5, 1, RELIABILITY_BINS))
    tests = [binomtest(int(outcome[rows].sum()), len(rows)) for rows in bins]
    low, high = np.transpose([test.proportion_ci(0.95, method="wilson") for test in tests])
    x, frequency = [predicted[rows].mean() for rows in bins], [test.statistic for test in tests]
    colour = COLOURS[LABELS[k]]
    axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.55)
    axes.plot(x, frequency, color=colour, marker="o", markersize=4, linewidth=1.2)
    axes.set(xlabel=f"predicted probability of {NAMES[k]}", ylabel="observed frequency", title=NAMES[k])
    return figure


def plot_confusion(p: Floats, y: Ints) -> Figure:
    """Plot the confusion matrix: counts and shares of each row; darker cells hold a larger share."""
    predicted = p.argmax(axis=1)
    counts = confusion_matrix(y, predicted, labels=range(3))
    share = confusion_matrix(y, predicted, labels=range(3), normalize="true")
    figure, axes = _subplot(3.4, 2.9)
    axes.grid(False)
    for i, j in np.ndindex(3, 3):
        shade = 0.08 + 0.6 * share[i, j]
        axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=COLOURS["a"], alpha=shade))
        axes.text(j, i - 0.1, f"{counts[i, j]:,}", ha="center", va="center", fontsize=11)
        axes.text(j, i + 0.25, f"{share[i, j]:.0%}", ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), xlabel="most probable outcome", ylabel="known outcome")
    axes.set_xticks(range(3), NAMES)
    axes.set_yticks(range(3), NAMES)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def plot_histogram(values: Floats, labels: Ints, k: int) -> Figure:
    """Plot the density of outcome ``k``'s probability, for rows with this outcome and for other rows."""
    figure, axes = _subplot(2.9, 2.1)
    known = labels >= 0
    filled = values[labels == k] if known.any() else values
    outlined = values[known & (labels != k)]
    if len(filled):
        style: dict[str, Any] = {"color": COLOURS[LABELS[k]], "alpha": 0.65}
        axes.hist(filled, HISTOGRAM_EDGES, density=True, label=f"outcome {NAMES[k]}", **style)
    if len(outlined):
        style = {"color": COLOURS["ink"], "linewidth": 1.1, "histtype": "step"}
        axes.hist(outlined, HISTOGRAM_EDGES, density=True, label="other outcomes", **style)
    if known.any():
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, handlelength=1.2)
    axes.set(xlim=(0, 1), xlabel=f"predicted probability of {NAMES[k]}", ylabel="density")
    return figure


def plot_swap(forward: Floats, swapped: Floats, seed: int = 0) -> Figure:
    """Plot the probability of response A in first position against that in second position.

    A random sample of :data:`MAX_POINTS` rows is drawn when there are more.
    """
    figure, axes = _square_subplot(3.2)
    if len(forward) > MAX_POINTS:
        chosen = np.random.default_rng(seed).choice(len(forward), MAX_POINTS, replace=False)
        forward, swapped = forward[chosen], swapped[chosen]
    size = 12 if len(forward) < 300 else 5
    axes.scatter(forward[:, 0], swapped[:, 0], s=size, color=COLOURS["a"], alpha=0.45, linewidths=0)
    axes.set(xlabel="probability of A in first position", ylabel="probability of A in second position")
    return figure


def plot_learning_curve(curve: Sequence[dict[str, Any]]) -> Figure:
    """Plot training loss (each logged step, and a running mean) above the learning rate.

    The loss on the early-stopping set is drawn with the training loss, its minimum marked.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps, losses = np.array([(entry["step"], entry["loss"]) for entry in curve if "loss" in entry]).T
    window = max(1, len(losses) // 20)
    mean = np.convolve(losses, np.ones(window), "valid") / window
    marker = "o" if len(steps) < 3 else None
    upper.plot(steps, losses, color=COLOURS["a"], linewidth=0.8, alpha=0.4)
    upper.plot(steps[window - 1 :], mean, color=COLOURS["a"], linewidth=1.6, marker=marker)
    name = "early_stopping_loss"
    held_out = [(entry["step"], entry[name]) for entry in curve if name in entry]
    if held_out:
        x, y = np.array(held_out).T
        upper.plot(x, y, color=COLOURS["b"], linewidth=1.4, marker="o", markersize=3)
        best = y.argmin()
        upper.plot(x[best], y[best], color=COLOURS["b"], marker="o", markersize=7)
        upper.legend(handles=upper.lines[1:3], labels=["training", "early-stopping set"], ncols=2)
    upper.set(ylabel="loss")
    rates = [(entry["step"], entry["learning_rate"]) for entry in curve if "learning_rate" in entry]
    if rates:
        lower.plot(*np.array(rates).T, color=COLOURS["tie"], linewidth=1.3)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set(xlabel="step", ylabel="learning\nrate")
    return figure


def render_png(figure: Figure) -> bytes:
    """Render the figure on white, for files and experiment trackers."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def render_svg(figure: Figure, name: str) -> str:
    """Render the figure as inline SVG that takes its colours and its font from the page around it.

    The unique ``name`` keeps the identifiers inside apart from those of other figures.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    replacements = {
        r' id="[A-Za-z0-9.]+_\d+"': "",  # groups that nothing refers to
        r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>': r'<svg \1 xmlns="http://www.w3.org/2000/svg">',
        r"<style.*?</style>": "",  # would apply to the whole page
        r"font-family: [^;\"]*": "font-family: var(--font)",
        **{colour: f"var(--{key})" for key, colour in COLOURS.items()},
    }
    for pattern, replacement in replacements.items():
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    return svg


def _subplot(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel, sizes in inches; without pyplot no global state has to be closed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _square_subplot(size: float) -> tuple[Figure, Axes]:
    """A figure of the unit square with its diagonal."""
    figure, axes = _subplot(size, size)
    limits, ticks = (-0.02, 1.02), np.linspace(0, 1, 6)
    axes.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks, aspect="equal")
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
    return figure, axes
