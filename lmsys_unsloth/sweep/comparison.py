"""Runs that no sweep started, listed as the jobs of a sweep directory so that they get the same report."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsys_unsloth.config.defaults import with_defaults
from lmsys_unsloth.config.parsing import parse_config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.report.flattening import flatten
from lmsys_unsloth.sweep.jobs import RECORD, Job, make_job, read_arguments, save_jobs

NOT_LISTED = ("fold", "logger", "debug/name")
"""Settings, or their sections, that do not tell runs apart."""

NAMED: dict[str, tuple[str, ...]] = {
    "prompt": ("body", "answers", "system", "reply", "truncation", "source", "file"),
    "model": ("repo", "path", "package", "revision", "licence"),
}
"""Settings of a section that its ``name`` stands for; the same name with others gets a mark."""


def list_runs(paths: Sequence[Path], folder: Path) -> None:
    """Write ``sweep.json`` for finished or unfinished runs, whose report is then that of a sweep.

    Runs that differ in the fold only become one configuration. Configurations are told apart by the settings
    in which the runs differ, whatever options gave them.

    Args:
        paths: run directories, or directories of cross-validations, of which all runs are listed.
        folder: directory to write; the record of an earlier comparison there is replaced.

    Raises:
        UserError: there are fewer than two runs, one is no run directory, or ``folder`` is that of a sweep.
    """
    if (folder / RECORD).is_file() and read_arguments(folder):
        raise UserError(f"{folder}: holds a sweep, whose record would be lost; name another folder: --output")
    runs = [run for path in paths for run in _trained(path)]
    runs = list({run.path.resolve(): run for run in runs}.values())
    if len(runs) < 2:
        raise UserError(f"{runs[0].path}: is one run; name at least two to compare.")
    settings = [_flat(run) for run in runs]
    for section in NAMED:
        _mark_equal_names(settings, section)
    keys = [
        key
        for key in dict.fromkeys(k for one in settings for k in one)
        if len({json.dumps(one.get(key)) for one in settings}) > 1
    ]
    seen: Counter[tuple[str, int]] = Counter()
    jobs = []
    for run, values in zip(runs, settings, strict=True):
        job = _job(run, folder, {key: values.get(key) for key in keys})
        repeat = seen[job.configuration, job.fold]  # the same settings and fold twice are two configurations
        seen[job.configuration, job.fold] += 1
        if repeat:
            job = dataclasses.replace(
                job, id=f"{job.id}-{repeat}", configuration=f"{job.configuration}-{repeat}"
            )
        jobs.append(job)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    save_jobs(folder, jobs, [])


def _trained(path: Path) -> list[Run]:
    """The runs that a directory stands for."""
    run = Run.open(path)
    return [run] if run.adapter.is_dir() else [Run.open(each) for each in run.merged_runs()]


def _flat(run: Run) -> dict[str, Any]:
    """Settings by name; those that :data:`NAMED` lists as one value for each section."""
    settings = with_defaults(run.settings())
    for section, keys in NAMED.items():
        settings[section]["named"] = json.dumps([settings[section].pop(key, None) for key in keys])
    return {
        key.replace("/", "."): value
        for section, values in settings.items()
        for key, value in flatten(section, values).items()
        if not key.startswith(NOT_LISTED)
    }


def _mark_equal_names(settings: Sequence[dict[str, Any]], section: str) -> None:
    """Replace what a name stands for by a number behind it, where it stands for several things."""
    found: dict[str, list[str]] = {}
    for one in settings:
        meanings = found.setdefault(one[f"{section}.name"], [])
        meaning = one.pop(f"{section}.named")
        if meaning not in meanings:
            meanings.append(meaning)
        if number := meanings.index(meaning):
            one[f"{section}.name"] += f" ({number + 1})"


def _job(run: Run, folder: Path, values: Mapping[str, Any]) -> Job:
    config: Any = parse_config(with_defaults(run.settings()))
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    job = make_job(config, overrides, folder)
    name = os.path.relpath(run.path.resolve(), folder.resolve())
    stored = json.loads(run.environment.read_text(encoding="utf-8"))["command"]
    return dataclasses.replace(job, name=name, stored_command=stored)
