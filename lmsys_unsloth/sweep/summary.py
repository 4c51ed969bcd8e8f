"""What the finished jobs of a sweep show, one line for each configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.bootstrap import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    cluster_numbers,
    paired_bootstrap,
)
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import Predictions, read_labelled
from lmsys_unsloth.sweep.jobs import Job, read_jobs, read_objective, shell_word
from lmsys_unsloth.sweep.search import LOSS, evaluations

NOT_COMPARED = ("fold", "logger")
"""Keys that do not tell configurations apart."""

SOURCE = ("path", "split", "layout", "seed", "rows", "length")
"""Keys of the section ``data`` that decide which rows are read."""


@dataclass(frozen=True)
class Configuration:
    """One configuration of a sweep over the folds that were trained of it."""

    id: str
    values: Mapping[str, Any]
    """What the overrides of the sweep's configurations differ in."""
    states: Mapping[str, int]
    """Number of jobs by state."""
    folds: int
    """Number of folds of the division."""
    scored_folds: tuple[int, ...]
    log_loss: float | None
    """Over all scored rows; None if nothing was scored."""
    log_loss_ci: Interval | None
    accuracy: float | None
    rows: int
    from_best: PairedDifference | None
    """Difference of log loss from the best configuration on the rows of both; None for the best itself."""
    early_stopping_loss: float | None
    """Mean over folds of the lowest loss on the early-stopping set."""
    minutes: float
    """Sum over jobs, repeated attempts included; of runs that no sweep started, of their training."""
    peak_memory_gb: float | None
    tokens_per_second: float | None
    """Mean over jobs, of training."""
    errors: tuple[str, ...]
    command: str
    runs: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every job that was planned of it is finished."""
        return set(self.states) == {"finished"}


@dataclass(frozen=True)
class _Scored:
    predictions: Predictions
    losses: Mapping[str, float]
    """Log loss by row id."""


def summarise(folder: Path) -> list[Configuration]:
    """Read a sweep directory, finished or not.

    Returns:
        Configurations by log loss, or by the loss on the early-stopping set where a search chose by that; the
        best first. Those that scored fewer folds than others come after them, and those without a score last.

    Raises:
        UserError: the folder is no sweep directory, or a run was trained on other data than the others.
    """
    jobs = read_jobs(folder)
    ids = dict.fromkeys(job.configuration for job in jobs)
    members = {id: [job for job in jobs if job.configuration == id] for id in ids}
    given = {id: _given(of_id[0]) for id, of_id in members.items()}
    varied = varied_keys(list(given.values()))
    finished = {id: [job for job in of_id if job.state() == "finished"] for id, of_id in members.items()}
    _require_same_data([job for of_id in finished.values() for job in of_id])
    scored = {id: _scored([job.run for job in of_id]) for id, of_id in finished.items()}
    by_early_stopping = read_objective(folder) == "early_stopping"
    keys = {id: _rank(finished[id], scored[id], by_early_stopping) for id in ids}
    order = sorted(ids, key=keys.__getitem__)
    best = scored[order[0]] if order else None
    return [
        _configuration(
            id, members[id], {key: given[id].get(key) for key in varied}, scored[id],
            None if id == order[0] else best,
        )
        for id in order
    ]  # fmt: skip


def varied_keys(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys to which the overrides of several jobs give different values, without :data:`NOT_COMPARED`."""
    keys = dict.fromkeys(key for one in given for key in one if key not in NOT_COMPARED)
    return [key for key in keys if len({repr(one.get(key)) for one in given}) > 1]


def to_csv(lines: Sequence[Configuration]) -> str:
    """The table as text in CSV, one line for each configuration."""
    table = pd.DataFrame(
        {
            **dict(line.values),
            "log_loss": line.log_loss, **_ends("log_loss", line.log_loss_ci),
            "from_best": None if line.from_best is None else line.from_best.difference,
            **_ends("from_best", None if line.from_best is None else line.from_best.difference_ci),
            "accuracy": line.accuracy, "rows": line.rows,
            "folds_scored": len(line.scored_folds), "folds": line.folds,
            "early_stopping_loss": line.early_stopping_loss, "minutes": round(line.minutes, 2),
            "peak_memory_gb": line.peak_memory_gb, "tokens_per_second": line.tokens_per_second,
            "state": ", ".join(f"{count} {state}" for state, count in line.states.items()),
            "errors": " | ".join(line.errors), "command": line.command, "runs": " ".join(line.runs),
            "id": line.id,
        }
        for line in lines
    )  # fmt: skip
    return table.to_csv(index=False)


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _configuration(
    id: str, jobs: Sequence[Job], values: Mapping[str, Any], own: _Scored | None, best: _Scored | None
) -> Configuration:
    done = [job for job in jobs if job.state() == "finished"]
    trainings = [job.run.training_description() for job in done]
    states = [job.state() for job in jobs]
    score: dict[str, Any] = {"log_loss": None, "log_loss_ci": None, "accuracy": None, "rows": 0}
    if own is not None:
        p, losses = own.predictions, np.array(list(own.losses.values()))
        score = {
            "log_loss": float(losses.mean()),
            "log_loss_ci": bootstrap_interval(losses, cluster_numbers(p.groups, len(p))),
            "accuracy": float((p.probabilities.argmax(axis=1) == p.labels).mean()),
            "rows": len(p),
        }
    return Configuration(
        id=id,
        values=values,
        states={state: states.count(state) for state in dict.fromkeys(states)},
        folds=jobs[0].folds,
        scored_folds=tuple(sorted(job.fold for job in done)),
        from_best=None if own is None or best is None else _difference(own, best),
        early_stopping_loss=_early_stopping_loss(done),
        minutes=sum(_seconds(job) for job in jobs) / 60,
        peak_memory_gb=max(
            (m for t in trainings if (m := t.get("peak_memory_gb")) is not None), default=None
        ),
        tokens_per_second=_mean([t.get("tokens_per_second") for t in trainings]),
        errors=tuple(dict.fromkeys(str(error) for job in jobs if (error := job.record().get("error")))),
        command=command(jobs),
        runs=tuple(str(job.run.path) for job in jobs),
        **score,
    )


def command(jobs: Sequence[Job]) -> str:
    """The command that trains a configuration as the sweep did, or those that trained it."""
    if jobs[0].stored_command:
        return "\n".join(dict.fromkeys(job.typed_command for job in jobs))
    words = [word for word in jobs[0].overrides if not word.startswith(("fold=", "data.folds="))]
    if {job.fold for job in jobs} == set(range(jobs[0].folds)) and jobs[0].folds > 1:
        return " ".join(["python train.py", *map(shell_word, words), f"cv={jobs[0].folds}"])
    if len(jobs) == 1:
        return jobs[0].typed_command
    words = [word for word in jobs[0].overrides if not word.startswith("fold=")]
    folds = ",".join(str(job.fold) for job in jobs)
    return " ".join(["python train.py -m", *map(shell_word, words), f"fold={folds}"])


def _seconds(job: Job) -> float:
    seconds = job.record().get("seconds")
    return float(job.run.training_description().get("seconds", 0.0) if seconds is None else seconds)


def _difference(own: _Scored, best: _Scored) -> PairedDifference | None:
    """Difference on the rows that both have scored; None if there are none."""
    groups = dict(zip(own.predictions.ids, own.predictions.groups, strict=True))
    shared = [id for id in own.losses if id in best.losses]
    if not shared:
        return None
    first, second = (np.array([one.losses[id] for id in shared]) for one in (own, best))
    return paired_bootstrap(first, second, cluster_numbers([groups[id] for id in shared], len(shared)))


def _scored(runs: Sequence[Run]) -> _Scored | None:
    labelled = read_labelled(runs)
    if labelled is None:
        return None
    losses = log_losses(labelled.probabilities.astype(np.float64), labelled.labels)
    return _Scored(labelled, dict(zip(labelled.ids, losses.tolist(), strict=True)))


def _require_same_data(jobs: Sequence[Job]) -> None:
    """Raise an error when the same source of rows had other contents for another job."""
    first: dict[tuple[str, ...], tuple[Job, Any]] = {}
    for job in jobs:
        data = job.run.settings()["data"]
        found = job.run.data_description().get("fingerprint")
        before, fingerprint = first.setdefault(tuple(str(data.get(key)) for key in SOURCE), (job, found))
        if fingerprint != found:
            raise UserError(
                f"{before.run.path} and {job.run.path}: {data['path']} changed between these jobs, so "
                "they can't be compared.\n  Delete the run directories of one state of the file, and resume."
            )


def _rank(finished: Sequence[Job], scored: _Scored | None, by_early_stopping: bool) -> tuple[int, float]:
    """Sorts the best configuration first."""
    if scored is None:
        return 0, np.inf
    loss = _early_stopping_loss(finished) if by_early_stopping else float(np.mean([*scored.losses.values()]))
    return -len(finished), np.inf if loss is None else loss


def _early_stopping_loss(finished: Sequence[Job]) -> float | None:
    return _mean([min(entry[LOSS] for entry in found) for job in finished if (found := evaluations(job))])


def _given(job: Job) -> dict[str, Any]:
    """Values of a job's overrides."""
    pairs = (override.lstrip("+").partition("=") for override in job.overrides)
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
