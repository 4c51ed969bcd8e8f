"""Figures of a sweep: parallel coordinates, and the effect of each key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmsys_unsloth.core.arrays import Floats
from lmsys_unsloth.report.plots import COLOURS, STYLE, finished
from lmsys_unsloth.sweep.summary import Configuration

MAX_KEYS = 8
"""Largest number of keys that are drawn; the others are in the table only."""

MAX_NAME = 14
"""Largest number of characters of a value beside an axis."""


def plot_sweep(lines: Sequence[Configuration]) -> dict[str, tuple[str, Figure]]:
    """Draw what two or more scored configurations show: (text alternative, figure) by name."""
    scored = [line for line in lines if line.log_loss is not None]
    if len(scored) < 2:
        return {}
    keys = [key for key in scored[0].values if len({repr(line.values[key]) for line in scored}) > 1][
        :MAX_KEYS
    ]
    if not keys:
        return {}
    figures: dict[str, tuple[str, Figure]] = {}
    with mpl.rc_context(STYLE):
        figures["parallel"] = (
            "Parallel coordinates: a line for each configuration, from its values to its log loss",
            plot_parallel(scored, keys),
        )
        for number, key in enumerate(keys):
            figures[f"effect_{number}"] = (f"Log loss by {key}", plot_effect(scored, key))
    return finished(figures)


def plot_parallel(lines: Sequence[Configuration], keys: Sequence[str]) -> Figure:
    """Plot one line for each configuration over an axis for each key and one for the log loss.

    The best quarter is emphasised.
    """
    figure = Figure(figsize=(max(4.5, 1.25 * (len(keys) + 1)), 3.4), layout="constrained")
    axes = figure.subplots()
    losses = np.array([float(line.log_loss or 0) for line in lines])
    columns = [positions([line.values[key] for line in lines]) for key in keys]
    columns.append((_scaled(losses), [(0.0, f"{losses.min():.3f}"), (1.0, f"{losses.max():.3f}")]))
    heights = np.array([places for places, _ in columns]).T
    emphasised = losses <= np.quantile(losses, 0.25)
    for row, strong in sorted(
        zip(heights.tolist(), emphasised.tolist(), strict=True), key=lambda item: item[1]
    ):
        colour, width, alpha = (COLOURS["a"], 1.6, 0.9) if strong else (COLOURS["muted"], 0.8, 0.45)
        axes.plot(range(len(columns)), row, color=colour, linewidth=width, alpha=alpha)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color=COLOURS["ink"], linewidth=0.8)
        for y, name in ticks:
            axes.text(x + 0.04, y, shorten(name), fontsize=7, va="center", color=COLOURS["ink"])
    names = [*keys, "log loss"]
    axes.set_xticks(range(len(columns)), [name.replace(".", ".\n") for name in names], fontsize=8)
    axes.set(yticks=[], xlim=(-0.1, len(columns) - 0.4), ylim=(-0.06, 1.06))
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def plot_effect(lines: Sequence[Configuration], key: str) -> Figure:
    """Plot the log loss of each configuration by its value of one key, and the mean for each value."""
    figure = Figure(figsize=(3.0, 2.7), layout="constrained")
    axes = figure.subplots()
    losses = np.array([float(line.log_loss or 0) for line in lines])
    values = [line.values[key] for line in lines]
    if _are_numbers(values) and len(set(values)) > 4:
        axes.scatter(values, losses, s=14, color=COLOURS["a"], linewidths=0)
        if min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
    else:
        _plot_groups(axes, values, losses)
    axes.set(xlabel=key, ylabel="log loss")
    return figure


def _plot_groups(axes: Axes, values: Sequence[Any], losses: Floats) -> None:
    names = ordered(values)
    at = np.array([names.index(as_text(value)) for value in values])
    axes.scatter(at, losses, s=12, color=COLOURS["muted"], alpha=0.7, linewidths=0)
    means = [losses[at == k].mean() for k in range(len(names))]
    axes.plot(range(len(names)), means, "o", color=COLOURS["a"], markersize=6)
    axes.set_xticks(range(len(names)), [shorten(name) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)


def positions(values: Sequence[Any]) -> tuple[Floats, list[tuple[float, str]]]:
    """Heights ``[n]`` between 0 and 1 of values on an axis, and the ticks of the axis.

    Numbers are placed by size, those over two or more orders of magnitude by their logarithm; other values at
    equal distances.
    """
    if _are_numbers(values) and len(set(values)) > 1:
        numbers = np.array(values, dtype=np.float64)
        wide = numbers.min() > 0 and numbers.max() >= 10 * numbers.min()
        heights = _scaled(np.log(numbers) if wide else numbers)
        shown = dict(sorted(zip(values, heights.tolist(), strict=True)))
        if len(shown) > 5 or min(np.diff(list(shown.values()))) < 0.06:  # the names would overlap
            shown = {value: shown[value] for value in (min(values), max(values))}
        return heights, [(height, as_text(value)) for value, height in shown.items()]
    names = ordered(values)
    scale = max(1, len(names) - 1)
    heights = np.array([names.index(as_text(value)) / scale for value in values])
    return heights, [(k / scale, name) for k, name in enumerate(names)]


def ordered(values: Sequence[Any]) -> list[str]:
    """Different values as texts, numbers by size.

    >>> ordered([16, 8, 16]), ordered(["v2", None])
    (['8', '16'], ['null', 'v2'])
    """
    different = {as_text(value): value for value in values}
    if _are_numbers(list(different.values())):
        return sorted(different, key=lambda name: float(different[name]))
    return sorted(different)


def shorten(name: str) -> str:
    """Cut a long text.

    >>> shorten("a-very-long-value-of-a-key")
    'a-very-long-v…'
    """
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def as_text(value: Any) -> str:
    """A value as it is shown, numbers with three digits.

    >>> as_text(0.0069714), as_text(None)
    ('0.00697', 'null')
    """
    if value is None:
        return "null"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _scaled(values: Floats) -> Floats:
    span = float(np.ptp(values))
    return (values - values.min()) / span if span else np.full(len(values), 0.5)
