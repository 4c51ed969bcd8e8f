"""Sweeps: what is refused, what is skipped, resumed and reported. Jobs run a stub instead of ``train.py``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.sweep import runner
from lmsys_unsloth.sweep.jobs import Job, read_jobs
from lmsys_unsloth.sweep.plan import Plan, make_plan

STUB = """
import pathlib, sys
words = sys.argv[1:]
path = [w.split("=", 1)[1].strip("'") for w in words if w.startswith(("hydra.run.dir=", "resume="))][0]
run = pathlib.Path(path)
(run / "config.yaml").write_text("")
with (run / "calls").open("a") as calls:
    calls.write(words[0].partition("=")[0] + "\\n")
if "fold1" in run.name and not pathlib.Path("repaired").exists():
    print("error: no room for fold 1")
    sys.exit(2)
(run / "metrics.json").write_text("{}")
(run / "report.html").write_text("")
"""


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)

    def plan(arguments: Sequence[str]) -> Plan:
        made = make_plan(arguments)
        return dataclasses.replace(made, jobs=[dataclasses.replace(j, script=str(stub)) for j in made.jobs])

    monkeypatch.setattr(runner, "make_plan", plan)
    monkeypatch.setattr(runner, "merge_folds", lambda folder, jobs: True)
    monkeypatch.setattr(runner, "_write_report", lambda folder: None)
    return tmp_path


def calls(job: Job) -> list[str]:
    return (job.run.path / "calls").read_text().split()


def test_a_failing_job_stops_no_other_and_a_second_start_does_the_rest(
    stubbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "lora.r=4,8", "fold=0,1,2,3", "launcher.jobs=2", "hydra.sweep.dir=SWEEP"]
    assert runner.main(words) == 1
    jobs = read_jobs(Path("SWEEP"))
    assert [job.state() for job in jobs] == ["finished", "failed", "finished", "finished"] * 2
    printed = capfd.readouterr().err
    assert printed.count("no room for fold 1") == 2 and "resume=SWEEP" in printed
    (stubbed / "repaired").touch()
    assert runner.main(["resume=SWEEP"]) == 0
    assert {job.state() for job in read_jobs(Path("SWEEP"))} == {"finished"}
    assert [len(calls(job)) for job in jobs] == [1, 2, 1, 1] * 2
    assert calls(jobs[1]) == ["lora.r", "resume"]
    assert json.loads(jobs[1].run.job.read_text())["attempts"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "fold=0,0,1"], "fold=0,0,1: 0 is given twice"),
        (["-m", "lora.rr=1,2"], "lora.rr: no such key"),
        (["-m", "model=llama3,nothing"], "nothing"),
        (["-m", "fold=0,9"], "the folds are 0 to 4"),
        (["-m", "seed=42", "data=simulated,lmsys"], "data=lmsys needs data.path"),
        (["cv=1"], "at least 2"),
        (["cv=3", "fold=0"], "leave out fold=0"),
        (["-m", "debug=preview", "fold=0,1"], "leave it out of a sweep"),
        (["-m", "launcher.jobs=0"], "launcher.jobs = 0"),
    ],
)
def test_mistakes_are_refused_before_a_job_starts(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make_plan(words)
    assert not list(tmp_path.iterdir())


def test_a_job_is_identified_by_its_configuration_whatever_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (make_plan(["cv=2", logger]).jobs for logger in ("logger=none", "logger=wandb"))
    assert [job.id for job in first] == [job.id for job in second]
    assert len({job.id for job in first}) == 2 and len({job.configuration for job in first}) == 1
    assert make_plan(["-m", "fold=0", "data.folds=2"]).jobs[0].id == first[0].id
