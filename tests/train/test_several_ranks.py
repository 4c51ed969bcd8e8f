"""Two processes train and score as one does, and end together; in CI on a CPU, over gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import DEADLY_STEP, SIGNALLED_STEP, train_case
from safetensors.torch import load_file
from tiny import save_tiny_llama, tolerance

from lmsys_unsloth.config.run_directory import Run

pytestmark = pytest.mark.slow  # trains models in three processes

TESTS = Path(__file__).resolve().parents[1]


@dataclass
class Trained:
    """Folder of the runs of two ranks, their output, and what one process gave."""

    folder: Path
    output: str
    status: int
    one: dict[str, dict[str, torch.Tensor]]

    def two(self, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / f"rank{rank}.safetensors")

    def curve(self, name: str) -> Any:
        return Run(self.folder / name).learning_curve()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All cases of ``rank_cases``, run by one process and then by two."""
    model, work = save_tiny_llama(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("ranks")
    one = {name: train_case(name, model, Run(work / f"one-{name}")) for name in ("plain", "uneven")}
    shutil.copytree(work / "one-plain", work / "resumed")
    (work / "resumed" / "training.json").unlink()
    newest = Run(work / "resumed").newest_checkpoint()
    assert newest is not None
    shutil.rmtree(Run(work / "resumed").checkpoint(newest))  # one step is left to do
    own = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), *sys.path])}
    if torch.cuda.device_count() == 1:
        own["CUDA_VISIBLE_DEVICES"] = "0"  # both ranks use it
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(TESTS / "train" / "rank_cases.py"), str(model), str(work)],
        env=os.environ | own,
        capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Trained(work, done.stdout + done.stderr, done.returncode, one)


@pytest.mark.parametrize(
    ("name", "same_as"), [("plain", "plain"), ("uneven", "uneven"), ("failing", "plain")]
)
def test_two_ranks_have_the_loss_curve_of_one_process(trained: Trained, name: str, same_as: str) -> None:
    found, expected = trained.curve(name), trained.curve(f"one-{same_as}")
    assert len(found) == len(expected) > 5
    for entry, other in zip(found, expected, strict=True):
        assert entry == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "same_as"), [("plain", "plain"), ("uneven", "uneven"), ("failing", "plain")]
)
def test_two_ranks_predict_every_row_as_one_process_does(trained: Trained, name: str, same_as: str) -> None:
    found, expected = trained.two(name)["probabilities"], trained.one[same_as]["probabilities"]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance())
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))


@pytest.mark.parametrize("name", ["plain", "uneven", "failing", "resumed"])
def test_all_ranks_end_with_the_same_weights_and_predictions(trained: Trained, name: str) -> None:
    first, second = trained.two(name, 0), trained.two(name, 1)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(second[key], tensor), key


def test_two_ranks_finish_what_one_process_began(trained: Trained) -> None:
    account = json.loads(Run(trained.folder / "resumed").training.read_text())
    assert account["resumed_at_step"] == account["steps"] - 1 and account["processes"] == 2
    found, expected = trained.two("resumed"), trained.one["plain"]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance())


def test_both_ranks_stop_early_at_the_same_step(trained: Trained) -> None:
    two, one = (json.loads(Run(trained.folder / n).training.read_text()) for n in ("uneven", "one-uneven"))
    assert (two["steps"], two["best_step"]) == (one["steps"], one["best_step"])


def test_a_rank_copes_alone_with_little_memory_and_a_broken_kernel(trained: Trained) -> None:
    assert "out of memory with" in trained.output
    assert "the fast decoder failed (RuntimeError: no kernel image is available)" in trained.output


def test_a_signal_to_one_rank_stops_both_after_the_same_step(trained: Trained) -> None:
    run = Run(trained.folder / "interrupted")
    assert [(run.path / f"rank{rank}").is_file() for rank in range(2)] == [True, True]
    assert run.newest_checkpoint() == SIGNALLED_STEP and not run.training.exists()


def test_a_killed_rank_is_named_and_ends_the_others(trained: Trained) -> None:
    assert trained.status != 0
    (line,) = [line for line in trained.output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 1 of 2 (process ") and "has ended" in line
    run = Run(trained.folder / "killed")
    assert not run.training.exists() and not run.adapter.exists()
    assert run.newest_checkpoint() == DEADLY_STEP - 1  # and what it holds is complete
    files = {file.name for file in run.checkpoint(DEADLY_STEP - 1).iterdir()}
    assert {"weights.safetensors", "optimizer.pt", "trainer_state.json", "complete.json"} <= files
