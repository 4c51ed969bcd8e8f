"""The runs of a study: data sets and arms of ``study.yaml``, and the processes that train them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json

ROOT = Path(__file__).resolve().parent.parent

BASE = "base"
"""Name of the arm without overrides of its own."""

RECORD = "study.json"
"""Name of the file in a run directory with its :class:`Job` and ``exit_status`` (null: not finished)."""

LOG = "output.txt"
"""Name of the file in a run directory that holds the output of ``train.py``."""

FOLDS = 5
"""Value of ``data.folds``, which no data set and no arm changes."""


@dataclass(frozen=True)
class DataSet:
    """Rows to train and evaluate on."""

    file: str | None
    """File name relative to ``--data``; None: the simulated arena."""
    folds: list[int]
    """Folds evaluated for each seed."""
    overrides: list[str]
    """Hydra overrides, for example of the number of rows trained on and of ``prompt.max_tokens``."""


@dataclass(frozen=True)
class Arm:
    """A variant of the recipe."""

    question: str
    """What the comparison with the base arm answers."""
    overrides: list[str]
    """Hydra overrides relative to the base."""
    teacher: str | None = None
    """Arm whose out-of-fold predictions are the soft labels; it is trained on all folds first."""


@dataclass(frozen=True)
class Study:
    """Content of ``study.yaml``."""

    base: list[str]
    """Hydra overrides of every run, which those of data sets and arms replace."""
    sets: dict[str, DataSet]
    arms: dict[str, Arm]


@dataclass(frozen=True)
class Job:
    """One run of ``train.py``."""

    data_set: str
    arm: str
    seed: int
    fold: int
    overrides: list[str]
    """All Hydra overrides except the run directory and the teacher's."""
    teacher: str | None = None
    """Arm whose merged folds are the teacher, for the same data set and seed."""

    @property
    def folder(self) -> Path:
        """Run directory, relative to the output directory."""
        return Path(self.data_set, self.arm, f"{self.seed}-{self.fold}")

    @property
    def teacher_folder(self) -> Path:
        """Directory of the teacher's cross-validation, relative to the output directory."""
        return Path(self.data_set, str(self.teacher), f"{self.seed}-folds")


def load_study(path: Path = ROOT / "benchmarks" / "study.yaml") -> Study:
    """Read the data sets and arms."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    entries = {name: entry for group in loaded["arms"].values() for name, entry in group.items()}

    def arm(question: str, entry: Any) -> Arm:
        if isinstance(entry, list):
            return Arm(question, entry)
        settings = [*entries[entry.get("like", BASE)], *entry["overrides"]]
        return Arm(question, settings, entry.get("teacher"))

    arms = {
        name: arm(question, entry)
        for question, group in loaded["arms"].items()
        for name, entry in group.items()
    }
    for name, arm in arms.items():
        if arm.teacher is not None and (arm.teacher not in arms or arms[arm.teacher].teacher is not None):
            sys.exit(f"{path}: {name}: teacher: {arm.teacher}: must be an arm that has no teacher itself")
    return Study(loaded["base"], {name: DataSet(**entry) for name, entry in loaded["sets"].items()}, arms)


def list_jobs(
    study: Study,
    sets: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    folds: Sequence[int] | None,
    data: Path | None,
) -> list[Job]:
    """List the runs in an order in which the arms on one fold can be compared as early as possible.

    The folds of teachers come before all arms that have one.

    Args:
        study: data sets and arms.
        sets, arms: names of those to run.
        seeds: seeds of each data set and arm.
        folds: folds to evaluate; None: those of each data set.
        data: folder of the data sets' files; needed unless all are simulated.
    """

    def job(name: str, arm: str, seed: int, fold: int) -> Job:
        settings = overrides(study, name, arm, seed, fold, data)
        return Job(name, arm, seed, fold, settings, study.arms[arm].teacher)

    jobs = [
        job(name, arm, seed, fold)
        for name in sets
        for seed in seeds
        for fold in (study.sets[name].folds if folds is None else folds)
        for arm in arms
    ]
    teachers = [
        job(student.data_set, student.teacher, student.seed, fold)
        for student in jobs
        for fold in range(FOLDS)
        if student.teacher is not None
    ]
    once = {each.folder: each for each in [*jobs, *teachers]}
    return sorted(once.values(), key=lambda each: each.teacher is not None)


def overrides(study: Study, name: str, arm: str, seed: int, fold: int, data: Path | None) -> list[str]:
    """Return the Hydra overrides of one run, each key once."""
    data_set = study.sets[name]
    if data_set.file is None:
        rows = [f"data.seed={seed}"]
    elif data is None:
        sys.exit(f"--data: missing; the data set {name} needs the folder that holds {data_set.file}")
    else:
        rows = ["data=lmsys", f"data.path={(data / data_set.file).resolve()}"]
    parts = (
        study.base,
        rows,
        data_set.overrides,
        study.arms[arm].overrides,
        [f"seed={seed}", f"fold={fold}"],
    )
    values = dict(override.split("=", 1) for part in parts for override in part)
    return [f"{key}={value}" for key, value in values.items()]


def read_record(folder: Path) -> tuple[Job, int | None] | None:
    """Return the job of a run directory and its exit status; None if there is no record."""
    if not (folder / RECORD).is_file():
        return None
    stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    status: int | None = stored.pop("exit_status")
    return Job(**stored), status


def check_records(jobs: Sequence[Job], output: Path) -> None:
    """Exit with a message if a run directory holds a run with other settings."""
    for job in jobs:
        stored = read_record(output / job.folder)
        old, new = set(stored[0].overrides if stored else job.overrides), set(job.overrides)
        if old != new:
            sys.exit(
                f"{output / job.folder}: was made with {sorted(old - new)} instead of {sorted(new - old)}; "
                "delete this folder, or name another --output"
            )


def run_job(job: Job, output: Path, threads: int) -> int:
    """Train one run unless it has finished, and return its exit status; 0 means success.

    A run that was interrupted resumes from its newest checkpoint, as ``train.py`` does in any run directory.
    """
    folder = (output / job.folder).resolve()
    stored = read_record(folder)
    if stored and stored[1] == 0:
        return 0
    write_json(folder / RECORD, asdict(job) | {"exit_status": None})
    started = time.perf_counter()
    with (folder / LOG).open("w", encoding="utf-8") as log:
        status = 0
        for command in list_commands(job, output):
            status = status or _run_command(command, log, threads)
    write_json(folder / RECORD, asdict(job) | {"exit_status": status})
    if status == 0:  # those of full fine-tuning take more than a gigabyte
        shutil.rmtree(Run(folder).checkpoints, ignore_errors=True)
    result = describe_failure(folder) if status else f"log loss {log_loss(folder):.4f}"
    print(f"{job.folder}: {result}, {time.perf_counter() - started:.0f} s", flush=True)
    return status


def list_commands(job: Job, output: Path) -> list[list[str]]:
    """List the commands of a run: the merging of its teacher's folds, unless that is done, and the training.

    The teacher must have predicted every training row of the student, so its validation folds are scored
    completely, again if ``debug.validation_rows`` had limited them.
    """
    train = ["train.py", *job.overrides, f"hydra.run.dir={(output / job.folder).resolve()}"]
    if job.teacher is None:
        return [train]
    teacher = (output / job.teacher_folder).resolve()
    folds = ",".join(str(teacher.with_name(f"{job.seed}-{fold}")) for fold in range(FOLDS))
    merge = ["eval.py", f"runs=[{folds}]", "debug.validation_rows=null", f"hydra.run.dir={teacher}"]
    return [*([] if Run(teacher).metrics.is_file() else [merge]), [*train, f"data.soft_labels={teacher}"]]


def _run_command(command: Sequence[str], log: TextIO, threads: int) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    return done.returncode


def log_loss(folder: Path) -> float:
    """Read the log loss of a finished run."""
    return float(json.loads(Run(folder).metrics.read_text(encoding="utf-8"))["log_loss"])


def describe_failure(folder: Path) -> str:
    """Return the last line of a failed run's output."""
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    return "failed: " + next((line.strip() for line in reversed(lines) if line.strip()), "no output")
