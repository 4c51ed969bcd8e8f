"""One job, run as a process of its own and watched until it ends. Every launcher calls :func:`run_job`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from lmsys_unsloth.sweep.jobs import Job, State

POLL_SECONDS = 0.2
"""Seconds between two looks at a process."""

LIFE_SECONDS = 10.0
"""Seconds between two signs of life: changes of the time of ``job.json``."""

INTERRUPTED = 130
"""Exit status of a training that ended with a checkpoint after Ctrl-C or SIGTERM."""

SHOWN_LINES = 12
"""Maximum number of lines of an error that are kept."""

_processes: dict[str, subprocess.Popen[bytes]] = {}
"""The processes that this process runs, by job."""


def run_job(job: Job, variables: Mapping[str, str] | None = None) -> None:
    """Run a job to its end, and note in ``job.json`` how it ended.

    If the job is asked to stop (:func:`request_stop`), or this function is interrupted, the process gets
    SIGTERM and may save a checkpoint. Signals for preemption (SIGUSR1, SIGUSR2), which SLURM sends to all
    processes of a job, do not reach it.

    Args:
        job: job to run.
        variables: environment variables of its process, in addition to those of this one.
    """
    run, record = job.run, job.record()
    if run.stop.is_file():
        return
    run.path.mkdir(parents=True, exist_ok=True)
    before, started = record.get("seconds", 0.0), time.time()
    job.note(state="running", attempts=record.get("attempts", 0) + 1, error=None, seconds=before)
    ended = False
    try:
        status = _watch(job, {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})})
        ended = True
    finally:
        if not ended:
            stop_process(job)
            job.note(state="interrupted", seconds=before + time.time() - started)
        _processes.pop(job.id, None)
    state = _state(job, status)
    error = explain(job, status) if state == "failed" else None
    job.note(state=state, error=error, seconds=before + time.time() - started)


def _watch(job: Job, environment: Mapping[str, str]) -> int:
    """Start the process and wait for its end; returns its exit status."""
    command = ["/bin/sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh", *job.command()]
    told, life = False, time.monotonic()
    with job.run.output.open("ab") as output:
        job.note(output_from=output.tell())
        # In a group of its own, so that Ctrl-C reaches the sweep only, which then stops its jobs.
        process = subprocess.Popen(
            command, cwd=job.cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
    _processes[job.id] = process
    while (status := process.poll()) is None:
        if not told and job.run.stop.is_file():
            told = True
            process.send_signal(signal.SIGTERM)
        if time.monotonic() - life >= LIFE_SECONDS:
            life = time.monotonic()
            os.utime(job.run.job)
        time.sleep(POLL_SECONDS)
    return status


def stop_process(job: Job) -> None:
    """End the process of a job that this process runs, after the checkpoint that it saves on SIGTERM.

    It may be called by a signal handler while :func:`run_job` waits, so it does not use the Popen's lock.
    """
    process = _processes.get(job.id)
    if process is None:
        return
    if _alive(process.pid):
        os.kill(process.pid, signal.SIGTERM)
    while _alive(process.pid):
        os.utime(job.run.job)
        time.sleep(POLL_SECONDS)


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def request_stop(job: Job) -> None:
    """Ask a job to end with a checkpoint, wherever it runs; one that has not begun does not begin."""
    job.run.path.mkdir(parents=True, exist_ok=True)
    job.run.stop.touch()


def _state(job: Job, status: int) -> State:
    if status == 0 and job.run.metrics.is_file():
        return "finished"
    if status in (INTERRUPTED, -signal.SIGTERM, 128 + signal.SIGTERM):
        return "interrupted"
    return "failed"


def explain(job: Job, status: int) -> str:
    """Why a job failed, from what its last attempt printed: the message for users, or the last line."""
    if status == -signal.SIGKILL:
        return "killed (signal 9), as the kernel does when memory is used up"
    if status < 0:
        return f"killed by signal {-status}"
    lines = [line for line in _printed(job.run.output, job.record().get("output_from", 0)) if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        return "\n".join(lines[starts[-1] :][:SHOWN_LINES]).removeprefix("error: ")
    if status == 0:
        return f"ended without {job.run.metrics.name}"
    return lines[-1].strip() if lines else f"exit status {status}, nothing printed"


def _printed(output: Path, start: int) -> list[str]:
    with output.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace").splitlines()
