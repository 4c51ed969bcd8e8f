"""Tables and a figure of the finished runs of a study."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from heading import heading
from matplotlib.figure import Figure
from study_runs import RECORD, Job, Study, describe_failure, read_record

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import replacing, write_text
from lmsys_unsloth.evaluate.bootstrap import PairedDifference, cluster_numbers, paired_bootstrap
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    read_predictions,
    stored_columns,
)

BASELINE, FORM = "logistic regression", "regression on form"
"""Names of the regressions, as in reports."""


@dataclass(frozen=True)
class FinishedRun:
    """What the report needs of one run."""

    job: Job
    metrics: dict[str, Any]
    """Content of ``metrics.json``."""
    seconds: float
    """Seconds of training."""
    commit: str
    """Commit of the code that made the run."""
    losses: pd.Series[float]
    """Log loss of each scored row, by id."""
    clusters: pd.Series[str]
    """Rows of one prompt share a name, also over folds and seeds; by id."""
    baseline: pd.Series[float]
    """Log loss of the baseline, logistic regression on twelve features, fitted on the same rows; by id."""
    form: pd.Series[float]
    """Log loss of the regression on form that ``head.offset`` and ``eval.stack`` use, likewise."""


def read_runs(study: Study, output: Path) -> tuple[list[FinishedRun], list[str]]:
    """Read all finished runs, in the order of the arms in the study, and describe the failed ones."""
    records = [(path.parent, read_record(path.parent)) for path in sorted(output.glob(f"*/*/*/{RECORD}"))]
    jobs = [(folder, *record) for folder, record in records if record]
    arms = list(study.arms)
    jobs.sort(key=lambda entry: arms.index(entry[1].arm) if entry[1].arm in arms else len(arms))
    finished = [read_run(job, folder) for folder, job, status in jobs if status == 0]
    failed = [f"{job.folder}: {describe_failure(folder)}" for folder, job, status in jobs if status]
    return finished, failed


def read_run(job: Job, folder: Path) -> FinishedRun:
    """Read one finished run."""
    run = Run(folder)
    predicted = read_predictions(run.predictions)
    fingerprint = run.data_description()["fingerprint"]
    regressions = [stored_columns(predicted, columns) for columns in (BASELINE_COLUMNS, FORM_COLUMNS)]
    by_id: Callable[[Any], Any] = functools.partial(pd.Series, index=list(predicted.ids))
    known = [predicted.probabilities.astype(np.float64), *(each for each in regressions if each is not None)]
    if len(known) < 3:
        raise SystemExit(
            f"{folder}: was scored by a version that stored no regressions; delete it, run again"
        )
    losses, baseline, form = (by_id(log_losses(each, predicted.labels)) for each in known)
    return FinishedRun(
        job,
        json.loads(run.metrics.read_text(encoding="utf-8")),
        json.loads(run.training.read_text(encoding="utf-8"))["seconds"],
        str(run.environment_description()["commit"]),
        losses,
        by_id([f"{fingerprint} {group}" for group in predicted.groups]),
        baseline,
        form,
    )


def compare(
    first: Sequence[pd.Series[float]], second: Sequence[pd.Series[float]], clusters: Sequence[pd.Series[str]]
) -> PairedDifference:
    """Compare losses of the same rows, run by run; the runs are pooled.

    Raises:
        KeyError: a run of ``second`` lacks a row.
    """
    other = [losses[own.index] for own, losses in zip(first, second, strict=True)]
    names = pd.concat(clusters).tolist()
    return paired_bootstrap(
        pd.concat(first).to_numpy(np.float64),
        pd.concat(other).to_numpy(np.float64),
        cluster_numbers(names, len(names)),
    )


@dataclass(frozen=True)
class Result:
    """One arm on one data set, over all its seeds and folds."""

    data_set: str
    arm: str
    runs: list[FinishedRun]
    from_reference: PairedDifference | None
    """Over the seeds and folds on which the reference was trained too; None for itself and without pairs."""
    runs_paired: int
    from_baseline: PairedDifference
    from_form: PairedDifference


def compare_arms(runs: Sequence[FinishedRun], reference: str) -> list[Result]:
    """Compare every arm of each data set with the arm ``reference`` and with both regressions."""
    others = {(run.job.data_set, run.job.seed, run.job.fold): run for run in runs if run.job.arm == reference}
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault((run.job.data_set, run.job.arm), []).append(run)
    results = []
    for (data_set, arm), own in groups.items():
        keys = [(run, (data_set, run.job.seed, run.job.fold)) for run in own]
        pairs = [(run, others[key]) for run, key in keys if key in others]
        from_reference = None
        if pairs and arm != reference:
            from_reference = compare(
                [run.losses for run, _ in pairs],
                [other.losses for _, other in pairs],
                [run.clusters for run, _ in pairs],
            )
        losses, clusters = [run.losses for run in own], [run.clusters for run in own]
        from_baseline = compare(losses, [run.baseline for run in own], clusters)
        from_form = compare(losses, [run.form for run in own], clusters)
        results.append(Result(data_set, arm, own, from_reference, len(pairs), from_baseline, from_form))
    return results


def write_report(study: Study, output: Path, reference: str) -> None:
    """Write ``study.md`` and ``study.png`` into the folder of the runs.

    ``reference`` names the arm that the others are compared with.
    """
    runs, failed = read_runs(study, output)
    if not runs:
        raise SystemExit(f"{output}: no finished run; start some with `python benchmarks/study.py run`")
    results = compare_arms(runs, reference)
    write_text(output / "study.md", as_markdown(study, results, failed, reference))
    with replacing(output / "study.png") as temporary:
        plot(results, reference).savefig(temporary, format="png", dpi=120)
    print(f"{output / 'study.md'}\n{output / 'study.png'}")


def as_markdown(study: Study, results: Sequence[Result], failed: Sequence[str], reference: str) -> str:
    """Return the tables of all data sets, with what is needed to reproduce them."""
    runs = [run for result in results for run in result.runs]
    sets = list(dict.fromkeys(result.data_set for result in results))
    arms = [name for name in study.arms if any(result.arm == name for result in results)]
    seeds = ",".join(map(str, sorted({run.job.seed for run in runs})))
    command = (
        f"python benchmarks/study.py run --sets {','.join(sets)} --arms {','.join(arms)} --seeds {seeds} "
        "--data DIR --output OUT"
    )
    lines = [
        heading("Variants of the recipe compared", command),
        f"{len(runs)} runs, trained at commit {', '.join(sorted({run.commit for run in runs}))}. Log losses "
        "are means over the runs ± their standard deviation;\nafter temperature: fitted out of fold. "
        "Differences are paired by row and pooled over the runs, negative where the arm is better;\nthe 95% "
        "interval resamples groups of equal prompts. It does not contain the variation between seeds. "
        "Seconds are\ncomparable between runs with the same --jobs and --threads on an idle machine.\n",
        "| arm | overrides | question |\n|---|---|---|",
        *(f"| {arm} | {_describe_settings(study, arm)} | {study.arms[arm].question} |" for arm in arms),
    ]
    for name in sets:
        lines += _set_table(study, name, [result for result in results if result.data_set == name], reference)
    if len(sets) > 1 and any(result.from_reference for result in results):
        lines += _summary(arms, sets, results, reference)
    if failed:
        lines += ["\n## Failed runs\n", *(f"- {failure}" for failure in failed)]
    return "\n".join(lines) + "\n"


def _describe_settings(study: Study, name: str) -> str:
    arm = study.arms[name]
    teacher = "" if arm.teacher is None else f", soft labels of {arm.teacher}'s merged folds"
    return f"`{' '.join(arm.overrides or study.base)}`{teacher}"


def _set_table(study: Study, name: str, results: Sequence[Result], reference: str) -> list[str]:
    """Table of one data set."""
    runs = [run for result in results for run in result.runs]
    where = sorted({(run.job.seed, run.job.fold) for run in runs})
    first = results[0].runs
    prior = _mean([run.metrics["baselines"]["class_prior"] for run in first])
    baseline, form = (
        _mean([run.metrics["baselines"][name] for run in first]) for name in ("logistic_regression", "form")
    )
    overrides = " ".join(study.sets[name].overrides) if name in study.sets else ""
    return [
        f"\n## {name}\n",
        f"`{overrides}`; seed and fold {', '.join(f'{seed}-{fold}' for seed, fold in where)}; "
        f"{', '.join(sorted({str(len(run.losses)) for run in runs}))} rows scored in a run.\n"
        f"Class prior {prior}, {BASELINE} {baseline}, {FORM} {form} (of the runs of `{results[0].arm}`).\n",
        "| arm | runs | log loss | after temperature | training, s "
        f"| − {reference} | − {BASELINE} | − {FORM} |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {result.arm} | {len(result.runs)} "
            f"| {_mean([run.metrics['log_loss'] for run in result.runs])} "
            f"| {_mean([run.metrics['log_loss_after_temperature'] for run in result.runs])} "
            f"| {statistics.mean(run.seconds for run in result.runs):.0f} "
            f"| {_difference(result.from_reference)}"
            f"{f' ({result.runs_paired} runs)' if 0 < result.runs_paired < len(result.runs) else ''} "
            f"| {_difference(result.from_baseline)} | {_difference(result.from_form)} |"
            for result in results
        ),
    ]


def _summary(
    arms: Sequence[str], sets: Sequence[str], results: Sequence[Result], reference: str
) -> list[str]:
    """Table of the differences from the reference on all data sets."""
    found = {(result.arm, result.data_set): result.from_reference for result in results}
    rows = [
        f"| {arm} | {' | '.join(_difference(found.get((arm, name))) for name in sets)} |"
        for arm in arms
        if arm != reference
    ]
    return [
        f"\n## Differences from {reference}\n",
        f"| arm | {' | '.join(sets)} |",
        "|---" * (len(sets) + 1) + "|",
        *rows,
    ]


def _mean(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation; a dash if a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


def _difference(pair: PairedDifference | None) -> str:
    """Difference and interval, in bold if the interval excludes zero; a dash if there is none."""
    if pair is None:
        return "–"
    if pair.difference_ci is None:
        return f"{pair.difference:+.3f}"
    low, high = pair.difference_ci
    text = f"{pair.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def plot(results: Sequence[Result], reference: str) -> Figure:
    """Draw the paired differences and their intervals: a column of panels for each data set.

    There is no row of panels for the reference where nothing can be compared with it.
    """
    compared: dict[str, Callable[[Result], PairedDifference | None]] = {
        reference: lambda result: result.from_reference,
        BASELINE: lambda result: result.from_baseline,
        FORM: lambda result: result.from_form,
    }
    sets = list(dict.fromkeys(result.data_set for result in results))
    arms = list(dict.fromkeys(result.arm for result in results))
    rows = {
        f"log loss − {name}": pairs
        for name, choose in compared.items()
        if any((pairs := {(result.data_set, result.arm): choose(result) for result in results}).values())
    }
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(
            figsize=(2.2 + 2.6 * len(sets), len(rows) * (0.8 + 0.22 * len(arms))), layout="constrained"
        )
        axes = figure.subplots(len(rows), len(sets), sharex="row", sharey=True, squeeze=False)
        for panels, (label, pairs) in zip(axes, rows.items(), strict=True):
            for axis, name in zip(panels, sets, strict=True):
                for y, arm in enumerate(arms):
                    if (pair := pairs.get((name, arm))) is None:
                        continue
                    low, high = pair.difference_ci or (pair.difference,) * 2
                    colour = "#2f8f57" if high < 0 else "#c0392b" if low > 0 else "#6b7785"
                    axis.plot([low, high], [y, y], color=colour, linewidth=1.5)
                    axis.plot(pair.difference, y, "o", color=colour, markersize=4)
                axis.axvline(0, color="#1f2933", linewidth=0.8)
                axis.grid(axis="y", color="#dfe3e8", linewidth=0.7)
                axis.set_xlabel(label)
                axis.set_yticks(range(len(arms)), arms)
                axis.set_ylim(len(arms) - 0.5, -0.5)
        for axis, name in zip(axes[0], sets, strict=True):
            axis.set_title(name)
    return figure
