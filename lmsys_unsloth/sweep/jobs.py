"""The jobs of a sweep: what identifies one, its command, and how far it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import script_of
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.sweep_schema import Objective
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json

ROOT = Path(__file__).resolve().parents[2]
"""Folder that contains the package."""

RECORD = "sweep.json"
"""Name of the file that makes a folder a sweep directory."""

SILENT_SECONDS = 60.0
"""Seconds after which a job that has shown no sign of life does not count as running."""

State = Literal["finished", "running", "failed", "pruned", "interrupted", "waiting"]
"""``interrupted``: begun, and to be resumed. ``pruned``: stopped by a search because others are better."""


@dataclass(frozen=True)
class Job:
    """One training of a sweep, identified by a hash of its resolved configuration.

    Paths are relative to the directory in which the sweep was started.
    """

    name: str
    """Name of its run directory in the sweep directory."""
    id: str
    """Hash of the configuration, without ``logger``, which does not change what is computed."""
    configuration: str
    """Hash of the configuration without ``fold``: equal for all folds of a cross-validation."""
    fold: int
    folds: int
    """Number of folds into which the rows are divided."""
    overrides: tuple[str, ...]
    """Overrides that give the configuration."""
    sweep: str
    """Sweep directory."""
    script: str = str(script_of("train"))
    cwd: str = "."
    """Working directory of the command."""
    stored_command: str = ""
    """Command that a run was started with which is none of the sweep's."""

    @property
    def run(self) -> Run:
        """The job's run directory."""
        return Run(Path(os.path.normpath(Path(self.sweep) / self.name)))

    def command(self) -> list[str]:
        """The command that begins the job, or resumes it if it was begun before."""
        if self.run.config.is_file():
            arguments = [f"resume={self.run.path}"]
        else:
            arguments = [*self.overrides, f"hydra.run.dir={quote(str(self.run.path))}"]
        return [sys.executable, self.script, *arguments]

    @property
    def typed_command(self) -> str:
        """The command as one types it, for reports."""
        if self.stored_command:
            return self.stored_command
        return " ".join(["python train.py", *map(shell_word, self.overrides)])

    def state(self) -> State:
        """How far the job is, by the files in its run directory."""
        if self.run.metrics.is_file() and self.run.report.is_file():
            return "finished"
        record = self.record()
        state: State = record.get("state", "interrupted" if self.run.config.is_file() else "waiting")
        if state == "running" and time.time() - self.run.job.stat().st_mtime > SILENT_SECONDS:
            return "interrupted"
        return state

    def record(self) -> dict[str, Any]:
        """Content of ``job.json``: state, attempts, seconds of all attempts together, error."""
        try:
            return dict(json.loads(self.run.job.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def note(self, **values: Any) -> None:
        """Change values of ``job.json``."""
        write_json(self.run.job, {**self.record(), **values})


def make_job(config: Config, overrides: Sequence[str], sweep: Path) -> Job:
    """Name a training by a hash of its configuration."""
    settings = config.model_dump(mode="json", exclude={"logger"})
    digest = _hash(settings)
    name = f"{config.model.name}-{config.prompt.name}-fold{config.fold}-{digest}"
    return Job(
        name=re.sub(r"[^\w.+-]+", "_", name),
        id=digest,
        configuration=_hash({key: value for key, value in settings.items() if key != "fold"}),
        fold=config.fold,
        folds=config.data.folds,
        overrides=tuple(overrides),
        sweep=str(sweep),
        cwd=str(Path.cwd()),
    )


def read_jobs(sweep: Path) -> list[Job]:
    """Read the jobs of a sweep directory, in the order in which they were planned.

    Raises:
        UserError: the folder is no sweep directory.
    """
    jobs = _read(sweep)["jobs"]
    return [Job(**{**job, "overrides": tuple(job["overrides"]), "sweep": str(sweep)}) for job in jobs]


def read_arguments(sweep: Path) -> list[str]:
    """Arguments of the command that started a sweep."""
    return list(_read(sweep)["arguments"])


def read_objective(sweep: Path) -> Objective:
    """By which loss the configurations of a sweep are ordered."""
    objective: Objective = _read(sweep).get("objective", "validation")
    return objective


def save_jobs(
    sweep: Path, jobs: Sequence[Job], arguments: Sequence[str], objective: Objective = "validation"
) -> None:
    """Write ``sweep.json``; jobs that are in it already stay."""
    earlier = read_jobs(sweep) if (sweep / RECORD).is_file() else []
    every = {job.id: job for job in [*earlier, *jobs]}
    listed = [_without_place(job) for job in every.values()]
    write_json(sweep / RECORD, {"arguments": list(arguments), "objective": objective, "jobs": listed})


def _without_place(job: Job) -> Mapping[str, Any]:
    return {key: value for key, value in asdict(job).items() if key != "sweep"}


def _read(sweep: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((sweep / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{sweep}: not a sweep directory, it has no {RECORD}.\n  `python train.py -m …` prints its path."
        ) from None
    except ValueError as error:
        raise UserError(f"{sweep / RECORD}: damaged ({error}); start the sweep's command again.") from None


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def quote(value: str) -> str:
    """Quote a text as the value of a Hydra override.

    >>> quote("runs/it's")
    "'runs/it\\\\'s'"
    """
    return "'" + value.replace("\\'", "\\\\'").replace("'", "\\'") + "'"


def shell_word(word: str) -> str:
    """Quote an override for a shell, where it needs that.

    >>> shell_word("lora.r=8"), shell_word("data.path='a b.csv'")
    ('lora.r=8', '"data.path=\\'a b.csv\\'"')
    """
    import shlex

    if re.fullmatch(r"[\w@%+=:,./~-]+", word):
        return word
    return f'"{word}"' if not re.search(r'["$`\\!]', word) else shlex.quote(word)
