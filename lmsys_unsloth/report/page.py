"""Metrics and predictions → ``RUN/report.html`` with ``RUN/plots/``, and the table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import replacing, write_text
from lmsys_unsloth.data.comparison import LABELS, Comparison
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import Predictions, swap_views
from lmsys_unsloth.report import findings
from lmsys_unsloth.report.slices import losses_by_slice

if TYPE_CHECKING:
    from jinja2 import Environment

WORST_ROWS = 20
SHOWN_TURNS = 6
SHOWN_CHARACTERS = 2400
"""Longer texts are cut in the middle; the ends say most about an answer."""

OUTCOMES = ("A is better", "B is better", "tie")


@dataclass(frozen=True)
class Example:
    """One row as the report shows it."""

    id: str
    outcome: str | None
    loss: float | None
    probabilities: tuple[float, float, float]
    model_a: str | None
    model_b: str | None
    notes: tuple[str, ...]
    turns_left_out: int
    turns: tuple[tuple[str, str, str], ...]
    """Prompt, answer A, answer B."""


def write_report(
    run: Run, metrics: Mapping[str, Any], predictions: Predictions, rows: Sequence[Comparison]
) -> None:
    """Write ``report.html`` (one self-contained file) and ``plots/*.png``.

    Args:
        run: where to write; its configuration, environment and learning curve are shown.
        metrics: from ``metrics.score_predictions`` or ``metrics.compute_metrics``.
        rows: the predicted rows, any order; sections that need the text of missing rows are left out.
    """
    from lmsys_unsloth.report import plots

    environment = run.environment_description()
    texts = _in_order(predictions, rows)
    slices = losses_by_slice(predictions, texts) if texts else {}
    figures = plots.all_figures(
        predictions.probabilities.astype(np.float64),
        predictions.labels,
        swap_views(predictions),
        run.learning_curve(),
    )
    for name, (_, figure) in figures.items():
        with replacing(run.plots / f"{name}.png") as temporary:
            temporary.write_bytes(plots.png(figure))
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=run.path.name,
            metrics=metrics,
            headline=findings.headline(metrics),
            summary=[*_leaks(run), *findings.summary(metrics, slices)],
            advice=findings.advice(metrics, slices),
            scores=score_lines(metrics),
            figures={name: (alt, plots.themed_svg(figure, name)) for name, (alt, figure) in figures.items()},
            slices=slices,
            span=_span(slices, metrics),
            examples=examples(predictions, texts) if texts else [],
            config=run.config.read_text(encoding="utf-8") if run.config.is_file() else "",
            env=environment,
            command=environment.get("command", ""),
        )
    )
    write_text(run.report, html.encode("utf-8", "replace").decode("utf-8"))


def print_summary(metrics: Mapping[str, Any], console: Console | None = None) -> None:
    """The end of a run in the terminal: this run's log loss among what it is to be compared with."""
    table = Table(
        box=box.SIMPLE_HEAD, title=findings.headline(metrics), title_style="bold", title_justify="left"
    )
    table.add_column("")
    table.add_column("log loss", justify="right")
    table.add_column("", style="dim")
    for line in score_lines(metrics):
        table.add_row(line.name, line.value, line.note, style="bold" if line.own else None)
    out = console or Console()
    out.print(table)
    for sentence in findings.summary(metrics):
        if sentence.tone == "bad":
            out.print(f"[bold yellow]![/] {sentence.text}", highlight=False)


@dataclass(frozen=True)
class ScoreLine:
    """A score and what it is."""

    name: str
    value: str
    note: str
    own: bool = False


def score_lines(metrics: Mapping[str, Any]) -> list[ScoreLine]:
    """The run's log loss and its baselines, worst to best as one expects them."""
    baselines = metrics["baselines"]
    loss, margin = metrics.get("log_loss"), findings.half_width(metrics.get("log_loss_ci"))
    source = f"constant, shares of the {metrics.get('class_prior_source', 'training rows')}"
    lines = [
        _line("uniform", baselines.get("uniform"), "every outcome 1/3"),
        _line("class prior", baselines.get("class_prior"), source),
        _line("logistic regression", baselines.get("logistic_regression"), "length, lists, code, similarity"),
        None if loss is None else ScoreLine(
            "this run", f"{loss:.4f}", _own_note(metrics, margin), own=True
        ),
        _line("  after temperature", metrics.get("log_loss_after_temperature"), _temperature_note(metrics)),
        _line("best possible", metrics.get("best_possible"), "true probabilities of the simulated rows"),
    ]  # fmt: skip
    return [line for line in lines if line is not None]


def examples(predictions: Predictions, rows: Sequence[Comparison], count: int = WORST_ROWS) -> list[Example]:
    """The rows that cost most; without labels, those the model is least certain of."""
    labelled = predictions.labelled
    p = predictions.probabilities.astype(np.float64)
    if labelled.any():
        cost = np.full(len(predictions), -np.inf)
        cost[labelled] = log_losses(p[labelled], predictions.labels[labelled])
    else:
        cost = -p.max(axis=1)
    order = np.argsort(-cost, kind="stable")[: min(count, int(labelled.sum()) or len(predictions))]
    return [_example(predictions, rows[k], int(k), float(cost[k])) for k in order]


def shortened(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """``text``, or its two ends with the number of characters left out between them.

    >>> shortened("abcdefgh", 4)
    'abc\\n… 4 characters left out …\\nh'
    """
    if len(text) <= limit:
        return text
    head = limit * 3 // 4
    tail = limit - head
    return f"{text[:head]}\n… {len(text) - limit:,} characters left out …\n{text[-tail:]}"


def _example(predictions: Predictions, row: Comparison, k: int, cost: float) -> Example:
    label = int(predictions.labels[k])
    a, b, tie = predictions.probabilities[k].tolist()
    cut = (predictions.extra.get("share_cut") or [0] * len(predictions))[k]
    notes = [f"{cut:.0%} cut"] if cut else []
    if row.responses_a == row.responses_b:
        notes.append("identical answers")
    if row.true_probabilities is not None:
        notes.append("true probabilities " + " / ".join(f"{p:.0%}" for p in row.true_probabilities))
    turns = list(zip(row.prompts, row.responses_a, row.responses_b, strict=True))
    return Example(
        id=row.id,
        outcome=OUTCOMES[label] if label >= 0 else None,
        loss=cost if label >= 0 else None,
        probabilities=(a, b, tie),
        model_a=row.model_a,
        model_b=row.model_b,
        notes=tuple(notes),
        turns_left_out=max(0, len(turns) - SHOWN_TURNS),
        turns=tuple((shortened(q), shortened(x), shortened(y)) for q, x, y in turns[-SHOWN_TURNS:]),
    )


def _in_order(predictions: Predictions, rows: Sequence[Comparison]) -> list[Comparison]:
    """One row for each prediction, found by id; empty when any is missing."""
    by_id = {row.id: row for row in rows}
    if not all(id in by_id for id in predictions.ids):
        return []
    return [by_id[id] for id in predictions.ids]


def _leaks(run: Run) -> list[findings.Sentence]:
    """The verdict of the leak report in ``data.json``, when it is a bad one."""
    verdict = str(run.data_description().get("leak", {}).get("verdict", ""))
    return [findings.Sentence(verdict, "bad")] if verdict.startswith("LEAK") else []


def _span(slices: Mapping[str, list[dict[str, Any]]], metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Common scale (low, high) of all interval bars, so that they can be compared across tables.

    Nine in ten ends of intervals lie on it; the others are drawn at its edge, or one odd part
    would squeeze all the rest into a few pixels.
    """
    edges = [edge for parts in slices.values() for part in parts for edge in part["ci"] or [part["log_loss"]]]
    if not edges:
        return 0.0, 1.0
    reach = 1.1 * float(np.quantile(np.abs(np.array(edges) - metrics["log_loss"]), 0.9)) or 0.05
    return metrics["log_loss"] - reach, metrics["log_loss"] + reach


def _line(name: str, value: float | None, note: str) -> ScoreLine | None:
    return None if value is None else ScoreLine(name, f"{value:.4f}", note)


def _own_note(metrics: Mapping[str, Any], margin: float | None) -> str:
    interval = "" if margin is None else f"±{margin:.4f}, "
    return f"{interval}{metrics['n']:,} rows, accuracy {metrics['accuracy']:.1%}"


def _temperature_note(metrics: Mapping[str, Any]) -> str:
    temperature = metrics.get("temperature")
    return "" if temperature is None else f"temperature {temperature:.2f}, fitted on other rows"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("lmsys_unsloth.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["drawn"] = Markup  # our own figures only: their texts are numbers and fixed words
    environment.globals["LABELS"] = LABELS
    return environment
