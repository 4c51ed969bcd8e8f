"""What a training does when its disk, its numbers or its time run out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import train_config
from tiny import save_tiny_llama
from training_cases import adapted, adapters, fit, rows

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError, WriteError
from lmsys_unsloth.model import trained_weights
from lmsys_unsloth.train import trainer

pytestmark = pytest.mark.slow

EVERY_STEP = train_config(max_steps=6, save_every_minutes=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def steps_on_disk(run: Run) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in run.checkpoints.glob("checkpoint-*"))


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(folder: Path, tmp_path: Path, keep: int) -> None:
    run = Run(tmp_path)
    fit(adapted(folder), folder, run, train_config(max_steps=6, save_every_minutes=0.0, keep=keep))
    assert steps_on_disk(run) == list(range(7 - keep, 7))


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, model = Run(tmp_path / "run"), adapted(folder)
    fit(model, folder, run, EVERY_STEP)
    file = run.checkpoint(6) / "weights.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    again = adapted(folder)
    fit(again, folder, run, EVERY_STEP)
    assert "checkpoint-6 is damaged (weights.safetensors)" in caplog.text
    assert run.training_description()["resumed_at_step"] == 5
    for name, weight in adapters(model).items():
        torch.testing.assert_close(adapters(again)[name], weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_with_a_clear_line_and_the_checkpoint_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run, calls = Run(tmp_path), 0
    ordinary = trained_weights.save_file

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")  # as safetensors does
        ordinary(*arguments)

    monkeypatch.setattr(trained_weights, "save_file", full)
    with pytest.raises(WriteError, match=r"checkpoint-3: can't be written: .*free some space"):
        fit(adapted(folder), folder, run, EVERY_STEP)
    assert run.newest_checkpoint() == 2
    fit(adapted(folder), folder, run, EVERY_STEP)
    assert run.training_description()["resumed_at_step"] == 2


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_names_its_rows_and_saves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    run, ordinary, calls = Run(tmp_path), trainer.answer_loss, 0

    def broken(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = ordinary(*arguments)
        return loss * float("nan") if calls == 4 else loss

    monkeypatch.setattr(trainer, "answer_loss", broken)
    config = train_config(max_steps=6, save_every_minutes=0.0, log_every=log_every, rows_per_step=4)
    with pytest.raises(UserError, match=r"loss nan, of the rows \d+, \d+") as caught:
        fit(adapted(folder), folder, run, config)
    newest = run.newest_checkpoint()
    assert newest is not None and f"checkpoint-{newest}" in str(caught.value)
    weights = trained_weights.read_weights(run.checkpoint(newest) / "weights.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_a_time_budget_ends_a_training_in_time(folder: Path, tmp_path: Path) -> None:
    run, data = Run(tmp_path), rows(24)
    config = train_config(epochs=100000 // len(data), time_budget=3.0, rows_per_step=4, lr_scheduler="cosine")
    fit(adapted(folder), folder, run, config, data)
    found = run.training_description()
    assert found["steps"] < found["planned_steps"] and found["time_budget"] == 3.0
    rates = [entry["learning_rate"] for entry in run.learning_curve()]
    assert rates[-1] < 0.5 * max(rates), "the schedule was not completed"


def test_a_time_budget_that_is_large_enough_changes_nothing(folder: Path, tmp_path: Path) -> None:
    curves = []
    for name, budget in (("without", None), ("with", 3600.0)):
        run = Run(tmp_path / name)
        fit(adapted(folder), folder, run, train_config(max_steps=6, time_budget=budget))
        curves.append([(entry["loss"], entry["learning_rate"]) for entry in run.learning_curve()])
    assert [loss for loss, _ in curves[0]] == pytest.approx([loss for loss, _ in curves[1]], abs=1e-6)


def test_a_run_directory_is_for_one_process(tmp_path: Path) -> None:
    held = (
        "from pathlib import Path; from lmsys_unsloth.config.run_directory import Run\n"
        f"with Run(Path({str(tmp_path)!r})).locked(): pass"
    )
    with Run(tmp_path).locked():
        done = subprocess.run([sys.executable, "-c", held], capture_output=True, text=True, timeout=100)
        assert "another process is training or scoring in this run directory" in done.stderr
    done = subprocess.run([sys.executable, "-c", held], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
