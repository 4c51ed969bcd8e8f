"""Arguments of the command line before Hydra sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmsys_unsloth.cli.arguments import prepare_arguments
from lmsys_unsloth.config.defaults import with_new_keys


def test_unknown_keys_are_passed_on_to_be_reported_by_the_schema() -> None:
    assert prepare_arguments(["lora.q=1", "lora.r=2", "model=llama3", "-m", "trian.x=1"]) == [
        "++lora.q=1", "lora.r=2", "model=llama3", "-m", "++trian.x=1",
    ]  # fmt: skip


def test_resuming_keeps_the_hydra_record_of_the_first_start(tmp_path: Path) -> None:
    resume = f"resume={tmp_path}"
    assert prepare_arguments([resume]) == [resume, "hydra.output_subdir=null"]
    (tmp_path / "config.yaml").touch()
    assert prepare_arguments([resume]) == [resume, "hydra.output_subdir=null", f"hydra.run.dir={tmp_path}"]


def test_runs_of_earlier_versions_get_defaults_for_new_keys_and_sections() -> None:
    stored = {"fold": 1, "lora": {"r": 4}}
    current = {"fold": 0, "lora": {"r": 8, "kind": "lora"}, "eval": {"swap": "none"}}
    assert with_new_keys(stored, current) == {
        "fold": 1, "lora": {"r": 4, "kind": "lora"}, "eval": {"swap": "none"},
    }  # fmt: skip


@pytest.mark.parametrize("stored", [{}, {"head": {"kind": "lm"}}])
def test_runs_of_earlier_versions_have_no_offset_whatever_the_default_is_now(stored: dict[str, Any]) -> None:
    current = {"head": {"kind": "lm", "offset": "form"}}
    assert with_new_keys(stored, current) == {"head": {"kind": "lm", "offset": "none"}}
    assert with_new_keys(current, current) == current
