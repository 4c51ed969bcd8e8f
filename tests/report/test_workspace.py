"""The wandb workspace uses only names that runs log, and is saved over wandb's HTTP interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import config
from loopback import serving

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


class Service:
    """Answers the GraphQL requests that wandb 0.31 sends to save a workspace."""

    def __init__(self, errors: Any = None) -> None:
        self.saved: list[dict[str, Any]] = []
        self.errors = errors

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path != "/graphql":  # telemetry
            return 200, {}
        request = json.loads(body)
        if "upsertView" not in request["query"]:
            viewer = {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}", "email": "",
                      "teams": {"edges": []}}  # fmt: skip
            return 200, {"data": {"viewer": viewer}}
        self.saved.append(request["variables"])
        if self.errors:
            return 200, {"errors": self.errors}
        view = {"id": "view", "name": request["variables"]["name"]}
        return 200, {"data": {"upsertView": {"view": view, "inserted": True}}}


def dashboard(address: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user who is logged in."""
    login = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40, "HOME": str(home)}
    command = [sys.executable, "-m", "lmsys_unsloth.dashboard", *words]
    return subprocess.run(
        command, env=os.environ | login, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_workspace_is_saved_in_the_users_project(tmp_path: Path) -> None:
    service = Service()
    with serving(service.answer) as address:
        done = dashboard(address, tmp_path, "--project", "judges")
        assert done.stdout.startswith(f"{address}/somebody/judges?nw="), done.stderr
    [saved] = service.saved
    assert (saved["entityName"], saved["projectName"]) == ("somebody", "judges")
    assert saved["displayName"] == workspace.NAME
    sections = json.loads(saved["spec"])["section"]["panelBankConfig"]["sections"]
    expected = workspace.build_workspace("somebody", "judges").sections
    assert [(s["name"], len(s["panels"])) for s in sections] == [(s.name, len(s.panels)) for s in expected]


@pytest.mark.slow
def test_a_refusal_of_the_service_is_told_in_a_line(tmp_path: Path) -> None:
    service = Service(errors=[{"message": "permission denied"}])
    with serving(service.answer) as address:
        done = dashboard(address, tmp_path, "--entity", "others")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: the workspace can't be saved" in done.stderr and "permission denied" in done.stderr
