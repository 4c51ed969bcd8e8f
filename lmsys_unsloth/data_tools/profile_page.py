"""A profile as one self-contained HTML file, with figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lmsys_unsloth.core.files import write_text
from lmsys_unsloth.data_tools.profile import Profile
from lmsys_unsloth.data_tools.profile_text import facts, findings, group_turns
from lmsys_unsloth.report import plots
from lmsys_unsloth.report.page import templates

SHOWN_MODELS = 30
SHOWN_BAD = 200
SHOWN_LANGUAGES = 12
"""Numbers of models, bad rows and languages on the page."""

_COLOURS = {"prompt": "muted", "response A": "a", "response B": "b"}


def write_profile(profile: Profile, out: Path) -> None:
    """Write the page; texts of the file are escaped, and nothing is loaded from elsewhere."""
    figures = plots.finished(_figures(profile))
    html = (
        templates()
        .get_template("profile.html.j2")
        .render(
            path=profile.path,
            rows=profile.rows,
            facts=list(facts(profile)),
            findings=list(findings(profile)),
            figures={name: (alt, plots.render_svg(figure, name)) for name, (alt, figure) in figures.items()},
            models=profile.models[:SHOWN_MODELS],
            bad=profile.bad[:SHOWN_BAD],
            bad_count=len(profile.bad),
            odd=profile.odd,
            odd_counts=profile.odd_counts,
        )
    )
    write_text(out, html.encode("utf-8", "replace").decode("utf-8"))


def _figures(profile: Profile) -> dict[str, tuple[str, Figure]]:
    """Figure and text alternative by name."""
    most_frequent = dict(list(profile.languages.items())[:SHOWN_LANGUAGES])
    with mpl.rc_context(plots.STYLE):
        figures = {
            "labels": ("Number of rows by outcome", _bars(profile.labels, "rows")),
            "lengths": ("Distribution of the lengths of prompts and responses", _lengths(profile)),
            "turns": ("Number of rows by number of turns", _bars(group_turns(profile.turns, most=8), "rows")),
            "languages": ("Number of rows by language", _bars(most_frequent, "rows")),
        }
        if profile.longer_wins:
            figures["length_difference"] = ("Outcome by difference in length", _outcome_by_length(profile))
    return figures


def _bars(counts: dict[str, int], label: str) -> Figure:
    """Horizontal bars, the first one on top."""
    figure = Figure(figsize=(3.6, 0.6 + 0.26 * max(len(counts), 3)), layout="constrained")
    axes = figure.subplots()
    colours = [plots.COLOURS.get(name, plots.COLOURS["a"]) for name in counts]
    axes.barh(range(len(counts)), list(counts.values()), color=colours)
    axes.set_yticks(range(len(counts)), [_plain(name) for name in counts])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure


def _plain(name: str) -> str:
    """A name from the file as text of a figure: no mathematics, no long lines."""
    return name.replace("$", r"\$")[:40]


def _lengths(profile: Profile) -> Figure:
    figure = Figure(figsize=(3.6, 2.6), layout="constrained")
    axes = figure.subplots()
    largest = max(float(values.max()) for values in profile.lengths.values())
    edges = np.geomspace(1, max(largest, 10), 40).tolist()
    for name, values in profile.lengths.items():
        colour = plots.COLOURS[_COLOURS[name]]
        axes.hist(np.maximum(values, 1), edges, label=name, color=colour, histtype="step", linewidth=1.3)
    axes.set_xscale("log")
    axes.set(xlabel="characters", ylabel="rows")
    axes.legend()
    return figure


def _outcome_by_length(profile: Profile, bins: int = 7) -> Figure:
    """Shares of the outcomes in bins of equally many rows by the logarithm of the ratio of lengths."""
    figure = Figure(figsize=(3.6, 2.6), layout="constrained")
    axes = figure.subplots()
    ratio = np.log2((profile.lengths["response A"] + 1) / (profile.lengths["response B"] + 1))
    order = np.argsort(ratio, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    x = [float(np.median(ratio[part])) for part in parts]
    for k, name in enumerate(plots.NAMES):
        share = [float((profile.outcomes[part] == k).mean()) for part in parts]
        axes.plot(x, share, marker="o", markersize=3, color=list(plots.COLOURS.values())[3 + k], label=name)
    axes.set(xlabel="log2 of length of A / length of B", ylabel="share of rows", ylim=(0, 1))
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure
