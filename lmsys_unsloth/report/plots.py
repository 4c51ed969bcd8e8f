"""Predictions → matplotlib figures, small enough to stay readable on a phone.

The colours below are those of the light page and of the PNG files; :func:`themed_svg` exchanges
them for the page's CSS variables, so that the same figure follows dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate.calibration import Floats, Ints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1f2933",
    "muted": "#6b7785",
    "grid": "#dfe3e8",
    "a": "#2f6fde",
    "b": "#d3601a",
    "tie": "#2f8f57",
}
NAMES = ("A", "B", "tie")
RELIABILITY_BINS = 10
MOST_POINTS = 1500
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlesize": 10,
    "axes.titlecolor": COLOURS["ink"],
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
    "legend.labelcolor": COLOURS["ink"],
    "svg.fonttype": "none",
    "svg.hashsalt": "lmsys_unsloth",
}


def all_figures(
    probabilities: Floats,
    labels: Ints,
    swap: tuple[Floats, Floats] | None,
    learning_curve: Sequence[dict[str, Any]],
) -> dict[str, tuple[str, Figure]]:
    """Every figure that these data allow, by file name: (text alternative, figure).

    Args:
        probabilities: [n, 3].
        labels: [n], -1 where unknown.
        swap: probabilities (forward, exchanged) [m, 3] of rows scored both ways.
        learning_curve: one entry for each logged step: ``step``, ``loss``, ``learning_rate``.
    """
    known = labels >= 0
    p, y = probabilities[known], labels[known]
    figures: dict[str, tuple[str, Figure]] = {}
    with _style():
        for k, name in enumerate(LABELS if len(p) else ()):
            alternative = f"Reliability of the probability of {NAMES[k]}"
            figures[f"reliability_{name}"] = (alternative, reliability(p[:, k], y == k, k))
        if len(p):
            alternative = "Confusion matrix: known outcome against most probable outcome"
            figures["confusion"] = (alternative, confusion(p, y))
        for k, name in enumerate(LABELS if len(probabilities) else ()):
            alternative = f"Histogram of the probability of {NAMES[k]}"
            figures[f"histogram_{name}"] = (alternative, histogram(probabilities[:, k], labels, k))
        if swap is not None:
            alternative = "Probability of A shown first against shown second"
            figures["swap"] = (alternative, swap_scatter(*swap))
        if any("loss" in entry for entry in learning_curve):
            figures["learning_curve"] = ("Training loss and learning rate by step", learning(learning_curve))
        for _, figure in figures.values():
            _settle(figure)
    return figures


def reliability(predicted: Floats, outcome: NDArray[np.bool_], k: int) -> Figure:
    """Observed share against predicted probability, in bins of equally many rows, with 95% intervals."""
    figure, axes = _figure(2.9, 2.9)
    order = np.argsort(predicted, kind="stable")
    bins = [
        part for part in np.array_split(order, min(RELIABILITY_BINS, max(1, len(order) // 5))) if len(part)
    ]
    x = np.array([predicted[part].mean() for part in bins])
    share = np.array([outcome[part].mean() for part in bins])
    low, high = wilson_interval(share, np.array([len(part) for part in bins]))
    colour = COLOURS[LABELS[k]]
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
    axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.55)
    axes.plot(x, share, color=colour, marker="o", markersize=4, linewidth=1.2)
    _unit_square(axes)
    axes.set(xlabel=f"predicted probability of {NAMES[k]}", ylabel="observed share", title=NAMES[k])
    return figure


def wilson_interval(share: Floats, n: NDArray[Any]) -> tuple[Floats, Floats]:
    """95% interval (low, high) of an observed share of ``n`` rows.

    >>> low, high = wilson_interval(np.array([0.5]), np.array([100]))
    >>> round(low.item(), 3), round(high.item(), 3)
    (0.404, 0.596)
    """
    z = 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def confusion(p: Floats, y: Ints) -> Figure:
    """Counts and row shares; the darker a cell, the larger its share of its row."""
    from matplotlib.patches import Rectangle

    counts = np.zeros((3, 3), dtype=np.int64)
    np.add.at(counts, (y, p.argmax(axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(3.4, 2.9)
    axes.grid(False)
    for i in range(3):
        for j in range(3):
            axes.add_patch(
                Rectangle(
                    (j - 0.48, i - 0.48), 0.96, 0.96, facecolor=COLOURS["a"], alpha=0.08 + 0.6 * share[i, j]
                )
            )
            axes.text(j, i - 0.1, f"{counts[i, j]:,}", ha="center", va="center", fontsize=11)
            axes.text(j, i + 0.25, f"{share[i, j]:.0%}", ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), xlabel="most probable", ylabel="known outcome")
    axes.set_xticks(range(3), NAMES)
    axes.set_yticks(range(3), NAMES)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def histogram(values: Floats, labels: Ints, k: int) -> Figure:
    """How often each probability was given, for rows with this outcome and for the others."""
    figure, axes = _figure(2.9, 2.1)
    edges = np.linspace(0, 1, 21).tolist()
    known = labels >= 0
    same, others = known & (labels == k), known & (labels != k)
    colour = COLOURS[LABELS[k]]
    if not known.any():
        axes.hist(values, edges, density=True, color=colour, alpha=0.65)
    if same.any():
        axes.hist(values[same], edges, density=True, color=colour, alpha=0.65, label=f"outcome {NAMES[k]}")
    if others.any():
        axes.hist(
            values[others], edges, density=True, color=COLOURS["ink"], linewidth=1.1,
            histtype="step", label="other outcomes",
        )  # fmt: skip
    if known.any():
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, handlelength=1.2)
    axes.set(xlim=(0, 1), xlabel=f"predicted probability of {NAMES[k]}", ylabel="density")
    return figure


def swap_scatter(forward: Floats, swapped: Floats, seed: int = 0) -> Figure:
    """Probability of bot A shown first against the same bot shown second; 1,500 rows at most, at random."""
    figure, axes = _figure(3.2, 3.2)
    if len(forward) > MOST_POINTS:
        chosen = np.random.default_rng(seed).choice(len(forward), MOST_POINTS, replace=False)
        forward, swapped = forward[chosen], swapped[chosen]
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
    size = 12 if len(forward) < 300 else 5
    axes.scatter(forward[:, 0], swapped[:, 0], s=size, color=COLOURS["a"], alpha=0.45, linewidths=0)
    _unit_square(axes)
    axes.set(xlabel="probability of A, shown first", ylabel="probability of A, shown second")
    return figure


def learning(curve: Sequence[dict[str, Any]]) -> Figure:
    """Training loss (each logged step, and a running mean) above the learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    losses = [(entry["step"], entry["loss"]) for entry in curve if "loss" in entry]
    steps, values = np.array(losses, dtype=np.float64).T
    window = max(1, len(values) // 20)
    mean = np.convolve(values, np.ones(window), "valid") / window
    upper.plot(steps, values, color=COLOURS["a"], linewidth=0.8, alpha=0.4)
    upper.plot(
        steps[window - 1 :], mean, color=COLOURS["a"], linewidth=1.6, marker="o" if len(steps) < 3 else None
    )
    upper.set(ylabel="training loss")
    rates = [(entry["step"], entry["learning_rate"]) for entry in curve if "learning_rate" in entry]
    if rates:
        lower.plot(*np.array(rates, dtype=np.float64).T, color=COLOURS["tie"], linewidth=1.3)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set(xlabel="step", ylabel="rate")
    return figure


def png(figure: Figure) -> bytes:
    """The figure for files and trackers, on white."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def themed_svg(figure: Figure, name: str) -> str:
    """The figure as inline SVG that takes its colours and its font from the page around it.

    ``name`` must be unique in the page: it keeps the identifiers inside apart from other figures'.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with _style(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # groups that nothing refers to
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 xmlns="http://www.w3.org/2000/svg">', svg, count=1
    )
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(
        r"<style.*?</style>", "", svg, flags=re.DOTALL
    )  # would hold for the whole page; it has its own
    for key, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{key})")
    return svg


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches. Without pyplot: nothing global, nothing to close."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _settle(figure: Figure) -> None:
    """Lay the figure out once, not again for each format it is saved in."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def _unit_square(axes: Axes) -> None:
    axes.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xticks=np.linspace(0, 1, 6),
        yticks=np.linspace(0, 1, 6),
        aspect="equal",
    )
