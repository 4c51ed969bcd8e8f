"""Launchers: the same job in a queue of submitit, on SLURM, on Ray and in joblib's processes."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
from tiny import save_tiny_llama

from lmsys_unsloth.config.sweep_schema import LauncherConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.sweep import launchers, runner
from lmsys_unsloth.sweep.execution import request_stop
from lmsys_unsloth.sweep.jobs import Job, read_jobs
from lmsys_unsloth.sweep.plan import make_plan

STUB = """
import pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(words.get("resume", words.get("hydra.run.dir", "")).strip("'"))
(run / "config.yaml").write_text("")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
with (run / "calls").open("a") as calls:
    calls.write(sys.argv[1].partition("=")[0] + "\\n")
time.sleep(0 if "resume" in words else 300)
(run / "metrics.json").write_text("{}")
(run / "report.html").write_text("")
"""


def launcher_config(*overrides: str) -> LauncherConfig:
    return make_plan(["-m", *overrides]).launcher


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that ends with a checkpoint when it is told to, and at once when it is resumed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    [job] = make_plan(["-m", "hydra.sweep.dir=SWEEP"]).jobs
    return dataclasses.replace(job, script=str(tmp_path / "stub.py"), sweep=str(tmp_path / "SWEEP"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [["submitit_local"], ["ray", "launcher.gpus=0"]], ids=lambda w: w[0])
def test_a_tiny_model_is_trained(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "model")
    small = ["data.rows=30", "data.folds=3", "train.max_steps=1", "model.first_layer=0", "model.path=model"]
    assert runner.main(["-m", *small, f"launcher={words[0]}", *words[1:], "hydra.sweep.dir=SWEEP"]) == 0
    [job] = read_jobs(Path("SWEEP"))
    assert job.state() == "finished" and job.run.adapter.is_dir()
    assert (tmp_path / "SWEEP" / "sweep.html").is_file()
    if words[0] == "ray":
        launchers.require("ray", "ray").shutdown()


def test_a_job_that_reaches_its_time_limit_is_queued_again_and_resumes(stubbed: Job) -> None:
    config = launcher_config("launcher=submitit_local", "launcher.minutes=1", "launcher.signal_seconds=57")
    started = launchers.make_launcher(config, Path(stubbed.sweep)).start(stubbed, 0)
    while not started.done():
        time.sleep(0.2)
    assert started.exception() is None
    assert stubbed.state() == "finished"
    calls = (stubbed.run.path / "calls").read_text().split()
    assert calls[-1] == "resume" and calls.count("resume") == 1
    assert json.loads(stubbed.run.job.read_text())["attempts"] == 2


def test_a_job_in_a_worker_process_of_joblib_can_be_stopped(stubbed: Job) -> None:
    launcher = launchers.make_launcher(launcher_config("launcher=joblib"), Path(stubbed.sweep))
    assert launcher.slots == 2
    started = launcher.start(stubbed, 0)
    while not (stubbed.run.path / "calls").is_file():
        time.sleep(0.1)
    request_stop(stubbed)
    while not started.done():
        time.sleep(0.1)
    assert started.exception() is None and stubbed.state() == "interrupted"


def test_the_batch_script_for_slurm_requests_what_the_preset_says(
    stubbed: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for ``sbatch`` keeps the script that SLURM would be given."""
    folder = Path(stubbed.sweep).parent / "bin"
    folder.mkdir()
    for name, text in {
        "srun": "",
        "sbatch": f'cp "${{@: -1}}" {folder}/script; echo Submitted batch job 12',
        "scancel": "",
        "sacct": "echo 'JobID|State'; echo '12|PENDING'",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    config = launcher_config(
        "launcher=submitit_slurm", "launcher.slurm={partition:long,account:lab}", "launcher.minutes=90",
        "launcher.setup=['module load cuda']",
    )  # fmt: skip
    started = launchers.make_launcher(config, Path(stubbed.sweep)).start(stubbed, 0)
    script = (folder / "script").read_text()
    for line in (
        "--partition=long", "--account=lab", "--time=90", "--cpus-per-task=8", "--gpus-per-node=1",
        "--mem=64GB", "--signal=USR2@120", "--requeue", "--nodes=1", "--ntasks-per-node=1",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in script, script
    assert "module load cuda" in script and sys.executable in script
    assert not started.done()


@pytest.mark.parametrize("kind", ["submitit_local", "ray", "joblib"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("submitit", "ray", "joblib.externals.loky"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"not installed.\n.*requirements/sweeps.txt"):
        launchers.make_launcher(launcher_config(f"launcher={kind}"), tmp_path)


def test_slurm_without_its_commands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"launcher\.kind = 'submitit_slurm'"):
        launchers.make_launcher(launcher_config("launcher=submitit_slurm"), tmp_path)
