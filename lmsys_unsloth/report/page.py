"""Write ``RUN/report.html`` and ``RUN/plots/``, and print the table of scores in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import replacing, write_text
from lmsys_unsloth.data.comparison import LABELS, Comparison
from lmsys_unsloth.data.selection import FEW_PROMPTS
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import Predictions, swap_views
from lmsys_unsloth.evaluate.scores import Metrics, Score
from lmsys_unsloth.report import findings
from lmsys_unsloth.report.score_table import format_difference, score_lines
from lmsys_unsloth.report.slices import Slice, losses_by_slice
from lmsys_unsloth.report.training_sources import training_sources

if TYPE_CHECKING:
    from jinja2 import Environment

WORST_ROWS = 20
"""Number of rows shown with their texts."""

SHOWN_TURNS = 6
"""Number of turns shown of each of these rows: the last ones."""

SHOWN_CHARACTERS = 2400
"""Number of characters shown of each text; longer texts are cut in the middle."""

OUTCOMES = ("A is better", "B is better", "tie")


@dataclass(frozen=True)
class Example:
    """One row with its texts, as the report shows it."""

    id: str
    outcome: str | None
    loss: float | None
    probabilities: tuple[float, float, float]
    model_a: str | None
    model_b: str | None
    notes: tuple[str, ...]
    turns_left_out: int
    turns: tuple[tuple[str, str, str], ...]
    """Prompt, response A and response B of each turn."""


def write_report(run: Run, metrics: Metrics, predictions: Predictions, rows: Sequence[Comparison]) -> None:
    """Write ``report.html``, one self-contained file, and ``plots/*.png``.

    The run's configuration, environment and learning curve are shown too. The predicted rows may come in any
    order; when some are missing, sections that need their texts are left out.
    """
    from lmsys_unsloth.report import plots

    environment = run.environment_description()
    by_id = {row.id: row for row in rows}
    texts = [by_id[id] for id in predictions.ids] if by_id.keys() >= set(predictions.ids) else []
    slices = losses_by_slice(predictions, texts) if texts else {}
    figures = plots.plot_all(
        predictions.probabilities.astype(np.float64),
        predictions.labels,
        swap_views(predictions),
        run.learning_curve(),
    )
    for name, (_, figure) in figures.items():
        with replacing(run.plots / f"{name}.png") as temporary:
            temporary.write_bytes(plots.render_png(figure))
    template = templates().get_template("report.html.j2")
    html = template.render(
        title=run.path.name,
        score=metrics.score,
        runs_compared=metrics.runs_compared,
        trained_rows_scored=findings.training_overlap(metrics) is not None,
        headline=findings.headline(metrics),
        findings=findings.list_findings(metrics, slices, data_warnings=_warnings(run)),
        scores=score_lines(metrics),
        adjusted=len(metrics.adjusted) > 1,
        sources=training_sources(run.data_description()),
        figures={name: (alt, plots.render_svg(figure, name)) for name, (alt, figure) in figures.items()},
        slices=slices,
        span=_span(slices, metrics.score),
        examples=examples(predictions, texts) if texts else [],
        config=run.config.read_text(encoding="utf-8") if run.config.is_file() else "",
        env=environment,
        command=environment.get("command", ""),
    )
    write_text(run.report, html.encode("utf-8", "replace").decode("utf-8"))


def print_summary(metrics: Metrics, console: Console | None = None) -> None:
    """Print the log loss with its baselines, and every finding that must not be overlooked."""
    style = "bold" if findings.training_overlap(metrics) is None else "bold yellow"
    title = findings.headline(metrics)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style=style, title_justify="left", show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("log loss", justify="right")
    table.add_column("vs. regression", no_wrap=True)
    table.add_column("", style="dim")
    for line in score_lines(metrics):
        difference = format_difference(line.from_regression)
        table.add_row(
            line.name, f"{line.log_loss:.4f}", difference, line.note, style="bold" if line.own else None
        )
    out = console or Console()
    out.print(table if metrics.score else title)
    for finding in findings.list_findings(metrics):
        if finding.tone == "bad":
            out.print(f"[bold yellow]![/] {finding.text}", highlight=False)


def examples(predictions: Predictions, rows: Sequence[Comparison], count: int = WORST_ROWS) -> list[Example]:
    """Choose the rows with the highest log loss; without labels, those with the least certain prediction."""
    labelled = predictions.labelled
    p = predictions.probabilities.astype(np.float64)
    if labelled.any():
        cost = np.full(len(predictions), -np.inf)
        cost[labelled] = log_losses(p[labelled], predictions.labels[labelled])
    else:
        cost = -p.max(axis=1)
    order = np.argsort(-cost, kind="stable")[: min(count, int(labelled.sum()) or len(predictions))]
    return [_example(predictions, rows[k], int(k), float(cost[k])) for k in order]


def shorten(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Cut a long text in the middle and say there how many characters were left out.

    >>> shorten("abcdefgh", 4)
    'abc\\n… 4 characters left out …\\nh'
    """
    if len(text) <= limit:
        return text
    head = limit * 3 // 4
    tail = limit - head
    return f"{text[:head]}\n… {len(text) - limit:,} characters left out …\n{text[-tail:]}"


def _example(predictions: Predictions, row: Comparison, k: int, cost: float) -> Example:
    label = int(predictions.labels[k])
    p_a, p_b, p_tie = predictions.probabilities[k].tolist()
    cut = predictions.extra["share_cut"][k] if "share_cut" in predictions.extra else 0
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
        probabilities=(p_a, p_b, p_tie),
        model_a=row.model_a,
        model_b=row.model_b,
        notes=tuple(notes),
        turns_left_out=max(0, len(turns) - SHOWN_TURNS),
        turns=tuple((shorten(q), shorten(a), shorten(b)) for q, a, b in turns[-SHOWN_TURNS:]),
    )


def _warnings(run: Run) -> list[str]:
    """Leaks, doubts about a teacher, and an early-stopping set that is too small to choose by."""
    prompts = run.training_description().get("early_stopping_prompts", FEW_PROMPTS)
    few = (
        f"The best step was chosen by an early-stopping set of only {prompts} prompts, so it may look best "
        "by chance: raise train.early_stopping_share, or train on more rows."
    )
    teacher = run.data_description().get("teacher", {}).get("warnings", [])
    return [*_leaks(run), *teacher, *([few] if prompts < FEW_PROMPTS else [])]


def _leaks(run: Run) -> list[str]:
    """The verdict of the leak report in ``data.json`` if prompts leak, and its warnings."""
    leak = run.data_description().get("leak", {})
    verdict = str(leak.get("verdict", ""))
    return [*([verdict] if verdict.startswith("LEAK") else []), *leak.get("warnings", [])]


def _span(slices: Mapping[str, Sequence[Slice]], score: Score | None) -> tuple[float, float]:
    """Lower and upper end of the scale that all interval bars share.

    Nine in ten ends of intervals lie on it; the others are drawn at its ends, so that one wide interval does
    not compress all others.
    """
    parts = [part for table in slices.values() for part in table]
    if score is None or not parts:
        return 0.0, 1.0
    ends = [end for part in parts for end in part.log_loss_ci or (part.log_loss,)]
    reach = 1.1 * float(np.quantile(np.abs(np.array(ends) - score.log_loss), 0.9)) or 0.05
    return score.log_loss - reach, score.log_loss + reach


def templates() -> Environment:
    """The templates of reports; values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("lmsys_unsloth.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["difference"] = format_difference
    environment.filters["safe_svg"] = Markup  # for figures only, whose texts are numbers and fixed words
    environment.globals |= {"LABELS": LABELS}
    return environment
