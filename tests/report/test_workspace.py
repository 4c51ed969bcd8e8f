"""The wandb workspace is built without a server and uses only names that runs log."""

from __future__ import annotations

import re

import pytest
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.report import tracking, workspace
from lmsys_unsloth.report.results import Outcome


def test_every_panel_shows_a_value_that_runs_log(evaluation: tuple[Run, Outcome]) -> None:
    run, found = evaluation
    with tracking.start(config("logger=wandb"), run, job_type="train") as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        tracker.publish(found, run)
        logged = set(tracker.run.summary.keys()) | set(tracker.run.config.keys())
    logged |= {f"train/{name}" for name in ("loss", "grad_norm")}  # transformers logs these
    logged |= {f"train/{name}" for name in ("tokens_per_second", "peak_memory_gb", "padding_share")}
    spec = workspace.build_workspace("somebody", "lmsys_unsloth")._to_model().model_dump_json(by_alias=True)
    named = set(re.findall(r"(?:eval|train|plots|tables)/[\w/]+", spec))
    assert len(named) > 15 and named <= logged, named - logged
    assert "model_prompt" in logged and '"groupBy":"model_prompt.value"' in spec


def test_there_is_a_section_for_each_topic() -> None:
    titles = [section.name for section in workspace.build_workspace("somebody", "p").sections]
    for word in ("model and prompt", "Calibration", "order", "speed"):
        assert any(word in title for title in titles)


def test_without_a_login_the_error_names_the_command_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace.wandb, "Api", _no_key)
    with pytest.raises(SystemExit, match="wandb login"):
        workspace.main([])


def _no_key() -> None:
    raise workspace.wandb.errors.UsageError("No API key configured")
