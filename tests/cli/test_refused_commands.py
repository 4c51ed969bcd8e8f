"""What the commands refuse before they read data: settings that do not fit, and nothing to score."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import composed, config
from omegaconf import OmegaConf
from trained_runs import Member

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.members import require_adapters
from lmsys_unsloth.cli.start.composition import compose
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError


def opened(monkeypatch: pytest.MonkeyPatch, open_: Any, overrides: Sequence[str], **values: Any) -> Any:
    """Call what the command calls after Hydra has composed the overrides."""
    monkeypatch.setattr(arguments, "_overrides", lambda: list(overrides))
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    free = [word for word in overrides if word.partition("=")[0] not in ("run", "resume")]
    command_keys = {"resume": None, "run": None, "runs": [], "cv": None}
    return open_(OmegaConf.create(composed(*free) | command_keys | values))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["debug=parity"], "debug.parity = True: compares forward passes without training; use eval.py"),
        (["engine=transformers"], "engine=transformers: is for scoring; leave it out, or use eval.py"),
    ],
    ids=["parity", "engine"],
)
def test_what_is_for_scoring_is_refused_in_training(
    overrides: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        opened(monkeypatch, arguments.open_training_run, overrides)


def test_a_resumed_training_takes_no_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["resume=RUN", "train.epochs=9"]
    with pytest.raises(UserError, match=r"resume=RUN uses that run's configuration; train.epochs=9 would"):
        opened(monkeypatch, arguments.open_training_run, words, resume="RUN")


def test_groups_of_a_trained_run_are_not_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"prompt=v2: a trained run is scored with its own settings"):
        opened(monkeypatch, arguments.open_evaluation, ["run=RUN", "prompt=v2"], run="RUN")


def test_an_evaluation_needs_something_to_score(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"what is to be scored\? A trained run \(run=RUN\)"):
        opened(monkeypatch, arguments.open_evaluation, ["eval.swap=average"])


def test_a_configuration_that_can_not_be_resolved_is_named() -> None:
    with pytest.raises(UserError, match=r"the configuration can't be resolved: .*missing.*"):
        arguments._plain(OmegaConf.create({"a": "${missing}"}))
    with pytest.raises(UserError, match=r"Could not delete.*nothing"):
        compose(["~nothing"], {})


def test_runs_without_adapters_can_not_be_scored_again(tmp_path: Path) -> None:
    members = [Member(Run(tmp_path / name), config()) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"a, .*b: has no adapters, so its rows can't be scored again"):
        require_adapters(members)
