"""Sweeps and searches that can't be what was meant are refused before their first job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json, write_text
from lmsys_unsloth.sweep import launchers
from lmsys_unsloth.sweep.jobs import Job, read_jobs
from lmsys_unsloth.sweep.plan import make_plan
from lmsys_unsloth.sweep.search import objective

FIXED = (
    "train.learning_rate=1e-3", "lora.r=8", "lora.dropout=0.0", "train.rows_per_step=8",
    "train.label_smoothing=0.0",
)  # fmt: skip
"""One value for each key of conf/search/default.yaml."""
SAME = ("lora.r=64", "lora.alpha=128.0", "lora.dropout=0.0")
"""With which both presets are the same."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "search=default", *FIXED], "search=default: no key is varied; give one several values"),
        (["resume=SWEEP", "lora.r=8"], "resume=SWEEP: lora.r=8 would change that sweep; leave it out"),
        (["-m", "--config-name=x", "lora.r=8,16"], "--config-name=x: a sweep takes overrides only"),
        (
            ["-m", "lora=default,r64", *SAME],
            "lora=default, lora=r64: give the same configuration; name it once",
        ),
    ],
    ids=["nothing varies", "other settings", "option", "equal"],
)
def test_a_sweep_that_can_not_be_meant_is_refused(
    words: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(UserError, match=message):
        make_plan(words)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "sweep.json", "{")
    with pytest.raises(UserError, match=r"sweep.json: damaged .*; start the sweep's command again"):
        read_jobs(tmp_path)


def test_a_search_needs_validation_rows_with_an_outcome(tmp_path: Path) -> None:
    job = Job("job", "", "", 0, 5, (), str(tmp_path))
    write_json(job.run.metrics, {"n": 3})
    config: Any = SimpleNamespace(objective="validation")
    with pytest.raises(UserError, match="has no log loss; the validation rows have no known outcome"):
        objective(job, config)


def test_a_ray_cluster_without_the_hardware_of_a_job_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = ModuleType("ray")
    ended: list[bool] = []
    ray.__dict__.update(
        init=lambda **_: None, cluster_resources=lambda: {"CPU": 4.0}, shutdown=lambda: ended.append(True)
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("PYTHONPATH", "")
    config: Any = SimpleNamespace(kind="ray", address=None, gpus=1, cpus=1)
    with pytest.raises(UserError, match=r"launcher.gpus = 1: the Ray cluster has 0 GPUs"):
        launchers.RayLauncher(config, 1)
    assert ended
