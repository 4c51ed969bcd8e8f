"""Commands in several processes: what is refused, and one ``torchrun train.py`` from start to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import config
from tiny import save_tiny_llama

from lmsys_unsloth.cli import agreement, launch
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Recorded(ranks.Ranks):
    """Two ranks, of which the other one answers ``others`` in turn."""

    size = 2

    def __init__(self, *others: Any) -> None:
        self.others = list(others)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.others.pop(0)]

    def share(self, value: Any) -> Any:
        return value


def use(monkeypatch: pytest.MonkeyPatch, group: ranks.Ranks) -> None:
    monkeypatch.setattr(ranks, "_joined", [group])


def flat(*overrides: str) -> list[dict[str, Any]]:
    """What a rank that was started with these overrides sends."""
    return [agreement._flat("", config(*overrides).model_dump(mode="json"))]


def test_ranks_with_other_settings_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Recorded(flat("train.epochs=7", "fold=1")))
    with pytest.raises(UserError, match=r"rank 1 .*fold = 1 \(rank 0: 0\), train.epochs = 7 \(rank 0: "):
        agreement.agree([config()], Run(tmp_path))


def test_a_rank_that_does_not_see_the_run_directory_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, Recorded(flat(), False))
    with pytest.raises(UserError, match="rank 1 does not see this run directory"):
        agreement.agree([config()], Run(tmp_path))


def test_equal_settings_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Recorded(flat("fold=1"), True))
    assert agreement.agree([config("fold=1")], Run(tmp_path)) == Run(tmp_path)


@pytest.mark.parametrize("name", ["preview", "parity"])
def test_what_one_process_does_is_refused_in_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    use(monkeypatch, Recorded())
    with pytest.raises(UserError, match=rf"debug.{name} = True.*2 were started"):
        agreement.agree([config(f"debug={name}")], Run(tmp_path))


@pytest.mark.parametrize("argument", ["-m", "--multirun", "hydra.mode=MULTIRUN", "cv=5", "search=default"])
def test_a_sweep_is_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(UserError, match="sweep"):
        launch._refuse_sweep(["fold=0,1", argument])
    launch._refuse_sweep(["fold=0", "logger=wandb"])


def test_predicting_with_a_cross_validation_is_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    launch._refuse_sweep(["cv=DIR", "data.path=test.csv"])


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model")
    settings = [
        "data.rows=60", "data.folds=3", "train.max_steps=3", "train.rows_per_step=4", "prompt=v2",
        "model.first_layer=0", f"model.path={model}", "logger=wandb",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    own = {"HF_HUB_OFFLINE": "1", "NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path / "w"),
           "TMPDIR": str(tmp_path / "temporary")}  # fmt: skip
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(ROOT / "train.py"), *settings],
        cwd=tmp_path, env=environment | own, capture_output=True, text=True, timeout=400,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert done.stdout.count("run directory: ") == 1
    assert done.stdout.count("INFO loading ") == 1 and "INFO" not in done.stderr
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert not list((tmp_path / "temporary").glob("lmsys-unsloth-rank-*"))
    account = json.loads((folder / "training.json").read_text())
    assert account["processes"] == 2 and account["steps"] == 3
    predictions = pd.read_parquet(folder / "predictions.parquet")
    folds = pd.read_csv(folder / "folds.csv", dtype={"id": str})
    assert sorted(predictions["id"]) == sorted(folds["id"][folds["fold"] == 0])
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "checkpoints" / "checkpoint-3" / "complete.json").is_file()
