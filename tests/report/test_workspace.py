"""The wandb workspace is built without a server and speaks of names that runs really log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_tracking import config, nobody_logged_in, outcome  # noqa: F401

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.report import tracking, workspace


def test_every_panel_shows_something_that_runs_log(tmp_path: Path) -> None:
    run = Run(tmp_path / "RUN")
    with tracking.start(config(), run, job_type="train") as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        tracker.publish(outcome(run), run)
        logged = set(tracker.run.summary.keys()) | set(tracker.run.config.keys())
    logged |= {f"train/{name}" for name in ("loss", "grad_norm")}  # transformers logs these
    logged |= {f"train/{name}" for name in ("tokens_per_second", "peak_memory_gb", "padding_share")}
    spec = workspace.workspace("somebody", "lmsys_unsloth")._to_model().model_dump_json(by_alias=True)
    named = set(re.findall(r"(?:eval|train|plots|tables)/[\w/]+", spec))
    assert len(named) > 15 and named <= logged, named - logged
    assert "model_prompt" in logged and '"groupBy":"model_prompt.value"' in spec


def test_sections_are_what_a_team_asks_for() -> None:
    titles = [section.name for section in workspace.workspace("somebody", "p").sections]
    for word in ("model and prompt", "Calibration", "order", "speed"):
        assert any(word in title for title in titles)


def test_without_a_login_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace.wandb, "Api", _no_key)
    with pytest.raises(SystemExit, match="wandb login"):
        workspace.main([])


def _no_key() -> None:
    raise workspace.wandb.errors.UsageError("No API key configured")
