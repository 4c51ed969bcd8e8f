"""``eval.py debug=parity`` for an untrained model and a trained run: table, ``parity.json``, exit status."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trained_runs import member, settings

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.parity import check_parity
from lmsys_unsloth.commands import eval as eval_script
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.forward_parity import ROWS, ForwardPass
from lmsys_unsloth.model import attention
from lmsys_unsloth.model.decoder import FastDecoder

pytestmark = pytest.mark.slow

PARITY = "debug=parity"


def stored(output: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.parity.read_text())
    return found


@pytest.mark.numeric
def test_an_untrained_model_is_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_parity(settings(folder, PARITY), [], Run(tmp_path))
    found, printed = stored(Run(tmp_path)), capsys.readouterr().out
    assert found["ok"] and len(found["rows"]) == ROWS
    fields = {field.name for field in dataclasses.fields(ForwardPass)}
    assert all(each.keys() == fields for each in found["passes"])
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for each in found["passes"]:
        assert any(line.startswith(each["name"]) and line.endswith(each["verdict"]) for line in lines), (
            printed
        )
    assert not Run(tmp_path).predictions.exists()


@pytest.mark.numeric
def test_a_trained_run_is_compared_with_its_adapters(
    folder: Path, tmp_path: Path, new_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, ordinary = [], FastDecoder.__init__

    def init(self: FastDecoder, model: Any, kernels: Any = None) -> None:
        kinds.append(hasattr(model, "peft_config"))
        ordinary(self, model, kernels)

    monkeypatch.setattr(FastDecoder, "__init__", init)
    trained = member(folder, "fold0", PARITY, f"data.path={new_rows}")
    assert check_parity(trained.config, [trained], Run(tmp_path))
    assert kinds and all(kinds) and len(stored(Run(tmp_path))["rows"]) == 6


def test_a_wrong_fast_decoder_ends_with_status_1(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arguments, "command_line", lambda: "python eval.py debug=parity")
    monkeypatch.setattr(attention, "choose_attention", lambda *_: lambda q, *_: torch.zeros_like(q))
    with pytest.raises(SystemExit) as ended:
        eval_script.evaluate(settings(folder, PARITY), [], Run(tmp_path))
    assert ended.value.code == 1
    found = stored(Run(tmp_path))
    assert not found["ok"]
    bad = [each["name"] for each in found["passes"] if each["verdict"] == "bad"]
    assert bad == ["fast, packed", "fast, row by row", "fast, packed, 4-bit kept"]
    assert "times what rounding explains" in capsys.readouterr().out


def test_several_runs_are_refused(folder: Path, tmp_path: Path) -> None:
    members = [member(folder, f"fold{fold}", PARITY) for fold in (0, 1)]
    with pytest.raises(UserError, match="one model; name one run=RUN"):
        check_parity(members[0].config, members, Run(tmp_path))
