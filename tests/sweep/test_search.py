"""Searches: what is varied, chosen, pruned and continued. Jobs run a stub instead of ``train.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.sweep import runner, search
from lmsys_unsloth.sweep.jobs import Job, read_jobs
from lmsys_unsloth.sweep.plan import make_plan

STUB = """
import json, pathlib, signal, sys, time
import yaml
def stop(*_):
    (run / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
words = dict(word.split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(words.get("resume", words.get("hydra.run.dir", "")).strip("'"))
if "resume" not in words:
    (run / "config.yaml").write_text(json.dumps(words))
words = yaml.safe_load((run / "config.yaml").read_text())
if pathlib.Path("killed").exists():
    sys.exit(130)
rank, found = int(words["lora.r"]), []
bad = rank == 64
for step in (1, 2, 3, 4):
    found.append({"step": step, "early_stopping_loss": 1.0 + abs(rank - 8) / 100 + bad * step})
    (run / "evaluations.json").write_text(json.dumps(found))
    time.sleep(1.0 if bad else 0)
(run / "metrics.json").write_text(json.dumps({"log_loss": 2.0 - rank / 100}))
(run / "report.html").write_text("")
"""
WORDS = ["search=default", "hydra.sweep.dir=SWEEP", "search.startup_trials=1", "train.learning_rate=1e-3"]
FIXED = ["lora.dropout=0", "train.rows_per_step=8", "train.label_smoothing=0"]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(Job, "script", str(path))
    made = search.compose_jobs

    def stubbed(*given: Any) -> list[Job]:
        return [Job(**{**vars(job), "script": str(path)}) for job in made(*given)]

    monkeypatch.setattr(search, "compose_jobs", stubbed)
    monkeypatch.setattr(runner, "_write_report", lambda folder: None)
    return tmp_path


def ranks() -> dict[int, str]:
    """State of each job by its rank."""
    found = {}
    for job in read_jobs(Path("SWEEP")):
        given = dict(word.split("=", 1) for word in job.overrides)
        found[int(given["lora.r"])] = job.state()
    return found


def test_a_search_finds_the_best_value_and_prunes_a_bad_one(
    stub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert runner.main([*WORDS, *FIXED, "lora.r=8,12,64", "search.trials=12", "search.sampler=random"]) == 0
    assert ranks() == {8: "finished", 12: "finished", 64: "pruned"}
    printed = capfd.readouterr().out
    assert "best: lora.r=8" in printed and "early-stopping set 1.0000" in printed


def test_the_validation_fold_can_be_the_objective(stub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, *FIXED, "lora.r=8,12", "search.trials=6", "search.objective=validation"]
    assert runner.main([*words, "search.sampler=random", "search.prune=false"]) == 0
    assert "best: lora.r=12\n  loss on the validation fold 1.8800" in capfd.readouterr().out


def test_a_search_that_was_interrupted_goes_on_with_the_trials_it_had_begun(stub: Path) -> None:
    (stub / "killed").touch()
    words = [*WORDS, *FIXED, "lora.r=8,12,16", "search.trials=2"]
    assert runner.main(words) == 1
    begun = {job.name for job in read_jobs(Path("SWEEP"))}
    assert set(ranks().values()) == {"interrupted"}
    (stub / "killed").unlink()
    assert runner.main(["resume=SWEEP"]) == 0
    assert {job.name for job in read_jobs(Path("SWEEP"))} == begun
    assert set(ranks().values()) == {"finished"}
    attempts = [json.loads(job.run.job.read_text())["attempts"] for job in read_jobs(Path("SWEEP"))]
    assert attempts == [2] * len(attempts)
    assert runner.main(["resume=SWEEP", "search.trials=9"]) == 0
    assert len(begun) <= len(ranks()) <= 3
    with pytest.raises(UserError, match="holds a search over other values"):
        search.Search(make_plan([*WORDS, *FIXED, "lora.r=8,32"]))


def test_values_of_the_command_take_the_place_of_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(
        ["search=default", "lora.r=8", "train.learning_rate=tag(log,interval(1e-5,1e-3))", "prompt=v1,v2"]
    )
    assert plan.search is not None
    space = plan.search.space
    assert "lora.r" not in space and "lora.r=8" in plan.overrides
    assert space["prompt"].choices == ["v1", "v2"]
    rate = space["train.learning_rate"]
    assert (rate.low, rate.high, rate.log) == (1e-5, 1e-3, True)
    assert "train.evaluate_every=20" in plan.overrides
    given = make_plan(["search=default", "train.evaluate_every=7"]).overrides
    assert [word for word in given if word.startswith("train.evaluate_every")] == ["train.evaluate_every=7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.trials=3"], "names no preset"),
        (["search=default", "fold=0,1"], "each trial trains one fold"),
        (["search=default", "search.trials=0"], "search.trials = 0"),
        (["search=default", "lora.rr=1,2"], "lora.rr: no such key"),
        (["search=default", "train.rows_per_step=interval(8,2)"], "low and high"),
        (["search=default", "lora.r=0,8"], "lora.r = 0"),
        (["search=nothing"], "nothing"),
    ],
)
def test_mistakes_in_a_search_are_refused_before_it_starts(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make_plan(words)
    assert not list(tmp_path.iterdir())
