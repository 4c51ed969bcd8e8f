"""Write ``sweep.csv`` and ``sweep.html``, and print the table of configurations in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.core.files import write_text
from lmsys_unsloth.evaluate.bootstrap import PairedDifference
from lmsys_unsloth.report.page import templates
from lmsys_unsloth.report.plots import render_svg
from lmsys_unsloth.sweep.figures import as_text, plot_sweep
from lmsys_unsloth.sweep.jobs import read_arguments, read_jobs, read_objective, shell_word
from lmsys_unsloth.sweep.summary import Configuration, summarise, to_csv

CSV, PAGE = "sweep.csv", "sweep.html"

MANY = 5
"""Number of configurations from which the report warns that the best one looks better than it is."""


def write_report(folder: Path) -> list[Configuration]:
    """Summarise a sweep directory in ``sweep.csv`` and ``sweep.html``, one self-contained file.

    Raises:
        UserError: the folder is no sweep directory, or a data file changed between its jobs.
    """
    lines, jobs = summarise(folder), read_jobs(folder)
    by_validation = read_objective(folder) == "validation"
    write_text(folder / CSV, to_csv(lines))
    figures = plot_sweep(lines)
    states, started_with = [job.state() for job in jobs], read_arguments(folder)
    html = templates().get_template("sweep.html.j2").render(
        title=str(folder),
        headline=headline(lines),
        lines=lines,
        text=as_text,
        keys=list(lines[0].values) if lines else [],
        warnings=warnings(lines, by_validation),
        counts={state: states.count(state) for state in dict.fromkeys(states)},
        failed=[(job.name, str(job.record().get("error"))) for job in jobs if job.state() == "failed"],
        figures={name: (alt, render_svg(figure, name)) for name, (alt, figure) in figures.items()},
        command=" ".join(["python train.py", *map(shell_word, started_with)]) if started_with else "",
    )  # fmt: skip
    write_text(folder / PAGE, html.encode("utf-8", "replace").decode("utf-8"))
    return lines


def headline(lines: Sequence[Configuration]) -> str:
    """What the sweep found, in one line."""
    if not lines or lines[0].log_loss is None:
        return f"{len(lines)} configurations, none scored yet"
    best = lines[0]
    values = ", ".join(f"{key} {as_text(value)}" for key, value in best.values.items())
    return f"log loss {best.log_loss:.4f}" + (f" with {values}" if values else "")


def warnings(lines: Sequence[Configuration], by_validation: bool) -> list[str]:
    """What must not be overlooked in the table."""
    found = []
    scored = [line for line in lines if line.log_loss is not None]
    folds = {len(line.scored_folds) for line in scored}
    if len(folds) > 1:
        found.append(
            "Some configurations have scored fewer folds than others; they are listed after the complete "
            "ones, and their differences are of the rows that both have scored."
        )
    if len(scored) >= MANY and by_validation:
        found.append(
            f"The best of {len(scored)} configurations was chosen by these very rows, so its log loss is "
            "lower than it would be on new ones. Score it on other folds or seeds before you report it."
        )
    return found


def print_summary(folder: Path, console: Console | None = None) -> None:
    """Write the report of a sweep directory and print one line for each configuration."""
    lines, by_validation = write_report(folder), read_objective(folder) == "validation"
    out = console or Console()
    out.print(headline(lines), markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for key in lines[0].values if lines else ():
        table.add_column(key.rpartition(".")[2])
    for name in ("log loss", "from best", "folds", "minutes"):
        table.add_column(name, justify="right")
    table.add_column("")
    for line in lines:
        states = ", ".join(f"{n} {state}" for state, n in line.states.items() if state != "finished")
        pair = line.from_best
        table.add_row(
            *map(as_text, line.values.values()),
            "" if line.log_loss is None else f"{line.log_loss:.4f}",
            "" if pair is None else f"{pair.difference:+.3f}{'*' if is_clear(pair) else ''}",
            f"{len(line.scored_folds)}/{line.folds}", f"{line.minutes:.1f}", states,
        )  # fmt: skip
    out.print(table)
    if any(line.from_best is not None and is_clear(line.from_best) for line in lines):
        out.print("* the 95% interval of the difference excludes 0", highlight=False)
    for text in warnings(lines, by_validation):
        out.print(text, markup=False, highlight=False)
    out.print(f"sweep report: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)


def is_clear(pair: PairedDifference) -> bool:
    """Whether the interval of a difference excludes 0."""
    return pair.difference_ci is not None and pair.difference_ci[0] * pair.difference_ci[1] > 0
