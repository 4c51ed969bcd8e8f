"""Where jobs run: on this machine, in joblib's workers, through submitit, or on a Ray cluster.

The libraries differ in how they start :func:`~lmsys_unsloth.sweep.execution.run_job`; all else is the same.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from lmsys_unsloth.config.sweep_schema import LauncherConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.sweep.execution import run_job, stop_process
from lmsys_unsloth.sweep.jobs import ROOT, Job

UNLIMITED = 10**6
"""Number of jobs at a time where the cluster decides how many run."""

QUEUE = "submitit/%j"
"""Where submitit keeps what it needs of each of its jobs, inside the sweep directory."""

GRACE_SECONDS = 900
"""Seconds for which a job that the cluster interrupts waits for its end, so that it counts as preempted."""


class Started(Protocol):
    """A job that was started, as ``concurrent.futures`` and submitit represent it."""

    def done(self) -> bool:
        """Whether it has ended."""

    def exception(self) -> BaseException | None:
        """Error of the launcher itself, after the end."""


class Launcher(Protocol):
    """Starts jobs."""

    slots: int
    """Maximum number of jobs at a time."""

    def start(self, job: Job, slot: int) -> Started:
        """Start a job in a slot (0 to ``slots - 1``) in which none runs."""


class LocalLauncher:
    """Jobs on this machine, each with a GPU of its own or its share of the CPU's threads.

    Args:
        slots: jobs at a time.
        gpus: GPUs that the slots share in turn; empty: none.
        submit: starts a function in the background, in a thread or another process.
    """

    def __init__(self, slots: int, gpus: list[str], submit: Callable[..., Started]) -> None:
        self.slots, self.gpus, self.submit = slots, gpus, submit

    def start(self, job: Job, slot: int) -> Started:
        return self.submit(run_job, job, self.variables(slot))

    def variables(self, slot: int) -> dict[str, str]:
        """Environment variables of the jobs in a slot."""
        variables: dict[str, str] = {}
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        elif self.slots > 1 and "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.slots))
        return variables


class SubmititLauncher:
    """Jobs in the queue of a SLURM cluster."""

    def __init__(self, config: LauncherConfig, folder: Path, slots: int) -> None:
        submitit = require("submitit", config.kind)
        self.slots = slots
        try:
            self.executor = submitit.AutoExecutor(
                folder / QUEUE, cluster="slurm", slurm_max_num_timeout=config.requeues
            )
            self.executor.update_parameters(**_slurm_parameters(config))
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise UserError(f"launcher.kind = {config.kind!r}: {error}") from None

    def start(self, job: Job, slot: int) -> Started:
        started: Started = self.executor.submit(ClusterJob(job))
        return started


class LocalSubmititLauncher:
    """Jobs on this machine that submitit runs as on a cluster, each with a GPU of its own."""

    def __init__(self, config: LauncherConfig, folder: Path, slots: int, gpus: list[str]) -> None:
        submitit = require("submitit", config.kind)
        self.slots, self.gpus = slots, [int(gpu) for gpu in gpus if gpu.isdigit()]
        self.executor = submitit.LocalExecutor(folder / QUEUE, max_num_timeout=config.requeues)
        self.executor.update_parameters(
            timeout_min=config.minutes, signal_delay_s=config.signal_seconds, setup=config.setup
        )

    def start(self, job: Job, slot: int) -> Started:
        if self.gpus:
            self.executor.update_parameters(gpus_per_node=1, visible_gpus=[self.gpus[slot % len(self.gpus)]])
        started: Started = self.executor.submit(ClusterJob(job))
        return started


class ClusterJob:
    """A job as submitit stores it: it can be stopped, queued again and resumed from its checkpoint."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> None:
        run_job(self.job)
        if self.job.state() == "interrupted" and not self.job.run.stop.is_file():
            # The cluster stopped it with SIGTERM. A job that returns now would count as completed.
            time.sleep(GRACE_SECONDS)
            raise RuntimeError("interrupted, but neither ended nor queued again by the cluster")

    def checkpoint(self) -> Any:
        """Called by submitit on SIGUSR2, before the time limit and on preemption: the job goes on later."""
        import submitit

        stop_process(self.job)
        self.job.note(state="interrupted")
        return submitit.helpers.DelayedSubmission(ClusterJob(self.job))


class RayLauncher:
    """Jobs on a Ray cluster; one whose machine is lost is begun again and resumes."""

    def __init__(self, config: LauncherConfig, slots: int) -> None:
        ray = require("ray", config.kind)
        self.slots = slots
        ray.init(
            address=config.address, include_dashboard=False, log_to_driver=False, logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
        )  # fmt: skip
        available = ray.cluster_resources()
        for name, key, wanted in (("GPU", "gpus", config.gpus), ("CPU", "cpus", config.cpus)):
            found = available.get(name, 0)
            if wanted > found:
                ray.shutdown()
                raise UserError(
                    f"launcher.{key} = {wanted}: the Ray cluster has {found:g} {name}s, so no job "
                    "could begin; lower it"
                )
        self.function = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=3)(run_job)

    def start(self, job: Job, slot: int) -> Started:
        started: Started = self.function.remote(job).future()
        return started


def make_launcher(config: LauncherConfig, folder: Path) -> Launcher:
    """The launcher that ``launcher`` names.

    Args:
        config: the section ``launcher``.
        folder: sweep directory; submitit keeps its files in it.

    Raises:
        UserError: its library is not installed, or it can't be used here.
    """
    # Worker processes import this package, which need not be installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    gpus = visible_gpus()
    here = config.jobs if isinstance(config.jobs, int) else max(1, len(gpus))
    cluster = config.jobs if isinstance(config.jobs, int) else UNLIMITED
    match config.kind:
        case "submitit_slurm":
            return SubmititLauncher(config, folder, cluster)
        case "submitit_local":
            return LocalSubmititLauncher(config, folder, here, gpus)
        case "ray":
            return RayLauncher(config, cluster)
        case "joblib":
            loky = require("joblib.externals.loky", config.kind)
            return LocalLauncher(here, gpus, loky.get_reusable_executor(max_workers=here).submit)
        case "local":
            return LocalLauncher(here, gpus, ThreadPoolExecutor(here).submit)


def visible_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that jobs may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(number) for number in range(count)]


def require(module: str, kind: str) -> Any:
    """Import an optional library."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{kind}: needs the package {module.partition('.')[0]}, which is not installed.\n"
            "  Install the optional packages: pip install -r requirements/sweeps.txt"
        ) from None


def _slurm_parameters(config: LauncherConfig) -> Mapping[str, Any]:
    """Parameters of submitit's SLURM executor."""
    return {
        "name": "lmsys_unsloth", "timeout_min": config.minutes, "nodes": 1, "tasks_per_node": 1,
        "cpus_per_task": config.cpus,
        **({} if not config.gpus else {"gpus_per_node": config.gpus}),
        **({} if config.memory_gb is None else {"mem_gb": config.memory_gb}),
        "slurm_signal_delay_s": config.signal_seconds, "slurm_setup": config.setup,
        "slurm_additional_parameters": {"requeue": True},
        **{f"slurm_{key}": value for key, value in config.slurm.items()},
    }  # fmt: skip
