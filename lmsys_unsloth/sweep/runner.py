"""Run the jobs of a sweep or a search, merge complete cross-validations, and say how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lmsys_unsloth.config.resources import script_of
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import prints_errors
from lmsys_unsloth.sweep.execution import POLL_SECONDS, request_stop
from lmsys_unsloth.sweep.jobs import Job, quote, read_jobs, save_jobs
from lmsys_unsloth.sweep.launchers import Launcher, Started, make_launcher
from lmsys_unsloth.sweep.plan import Plan, make_plan
from lmsys_unsloth.sweep.search import Search


class Jobs(Protocol):
    """Where the jobs come from."""

    def next(self) -> Job | None:
        """The next job to start; None if there is none left."""

    def watch(self, job: Job) -> None:
        """Called again and again while a job runs."""

    def ended(self, job: Job) -> None:
        """Called when a job has ended."""


class Listed:
    """Jobs that are known in advance."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = deque(jobs)

    def next(self) -> Job | None:
        return self.waiting.popleft() if self.waiting else None

    def watch(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        pass


@prints_errors
def main(arguments: Sequence[str]) -> int:
    """Run a sweep; 0 if every job is finished, 1 if one failed, 2 for bad input, 130 if interrupted."""
    plan = make_plan(arguments)
    launcher = make_launcher(plan.launcher, plan.folder)
    jobs: Jobs = Listed(_begin(plan)) if plan.search is None else Search(plan)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_jobs(jobs, launcher)
        merged = plan.search is not None or merge_folds(plan.folder, plan.jobs)
    except KeyboardInterrupt:
        print(f"\ninterrupted\nresume with: python train.py resume={plan.folder}", file=sys.stderr)
        return 130
    _write_report(plan.folder)
    if isinstance(jobs, Search):
        print(jobs.describe())
    return max(_report_failures(plan), 0 if merged else 1)


def _begin(plan: Plan) -> list[Job]:
    """Record a sweep; returns the jobs that are not finished."""
    save_jobs(plan.folder, plan.jobs, plan.arguments)
    open_jobs = [job for job in plan.jobs if job.state() != "finished"]
    print(f"sweep {plan.folder}: {len(plan.jobs)} jobs, {len(plan.jobs) - len(open_jobs)} finished already")
    return open_jobs


def _report_failures(plan: Plan) -> int:
    jobs = plan.jobs or read_jobs(plan.folder)
    failed = [job for job in jobs if job.state() not in ("finished", "pruned")]
    for job in failed:
        print(f"{job.state()}: {job.name}: {job.record().get('error')}", file=sys.stderr)
    if failed:
        print(f"try again with: python train.py resume={plan.folder}", file=sys.stderr)
    return 1 if failed else 0


def _write_report(folder: Path) -> None:
    from lmsys_unsloth.sweep.report import print_summary  # slow imports

    print_summary(folder)


def run_jobs(jobs: Jobs, launcher: Launcher) -> None:
    """Run jobs, as many at a time as the launcher has slots; a failure does not stop the others.

    Raises:
        KeyboardInterrupt: after all running jobs have saved a checkpoint.
    """
    running = dict[int, tuple[Job, Started]]()
    try:
        while True:
            free = (slot for slot in range(launcher.slots) if slot not in running)
            while (slot := next(free, None)) is not None and (job := jobs.next()) is not None:
                job.run.stop.unlink(missing_ok=True)
                print(f"begins: {job.name} ({job.run.output})", flush=True)
                running[slot] = job, launcher.start(job, slot)
            if not running:
                return
            for job, _ in running.values():
                jobs.watch(job)
            _remove_ended(running, jobs)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        for job, _ in running.values():
            request_stop(job)
        while running:
            _remove_ended(running, jobs)
            time.sleep(POLL_SECONDS)
        raise


def _remove_ended(running: dict[int, tuple[Job, Started]], jobs: Jobs) -> None:
    for slot, (job, started) in list(running.items()):
        if started.done():
            del running[slot]
            if (error := started.exception()) is not None:
                job.note(state="failed", error=f"{type(error).__name__}: {error}")
            jobs.ended(job)
            print(f"{job.state()}: {job.name}", flush=True)


def merge_folds(folder: Path, jobs: Sequence[Job]) -> bool:
    """Merge each configuration whose folds are all finished, as ``python eval.py runs=[…]`` does.

    Results are in the sweep directory if it has one configuration, otherwise in ``cv-ID``.

    Returns:
        Whether every merge succeeded.
    """
    configurations = list(dict.fromkeys(job.configuration for job in jobs))
    succeeded = True
    for configuration in configurations:
        members = [job for job in jobs if job.configuration == configuration]
        complete = {job.fold for job in members} == set(range(members[0].folds))
        if not complete or any(job.state() != "finished" for job in members):
            continue
        output = Run(folder if len(configurations) == 1 else folder / f"cv-{configuration}")
        if output.metrics.is_file() and output.report.is_file():
            continue
        runs = ",".join(quote(str(job.run.path)) for job in members)
        place = f"hydra.run.dir={quote(str(output.path))}"
        command = [sys.executable, str(script_of("eval")), f"runs=[{runs}]", place]
        succeeded &= subprocess.run(command, check=False).returncode == 0
    return succeeded


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
