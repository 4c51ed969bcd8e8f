"""The weights of the best evaluation are kept, through a kill and to the end of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import config
from tiny import save_tiny_llama
from training_cases import TRAIN, adapted, adapters, fit, rows

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.selection import split_early_stopping
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.parity import FallbackDecoder

HELD_OUT = rows(12)
EVERY_TWO = TRAIN.model_copy(update={"evaluate_every": 2})

pytestmark = pytest.mark.slow  # each trains a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def curve(run: Run) -> dict[int, float]:
    """Loss on the early-stopping set by step."""
    name = "early_stopping_loss"
    return {int(entry["step"]): entry[name] for entry in run.learning_curve() if name in entry}


def test_the_weights_of_the_best_step_are_kept(folder: Path, tmp_path: Path) -> None:
    from lmsys_unsloth.train.early_stopping import mean_loss

    run, model = Run(tmp_path), adapted(folder)
    fit(model, folder, run, EVERY_TWO.model_copy(update={"learning_rate": 0.05}), early_stopping=HELD_OUT)
    losses = curve(run)
    steps = json.loads(run.training.read_text())["steps"]
    assert list(losses) == [*range(2, steps, 2), steps]  # the last step is evaluated too
    best = min(losses, key=losses.__getitem__)
    assert json.loads(run.training.read_text())["best_step"] == best
    assert mean_loss(FallbackDecoder(FastDecoder(model)), HELD_OUT) == losses[best]
    fewer = adapted(folder)  # the same training, ended at the best step
    settings = TRAIN.model_copy(update={"learning_rate": 0.05, "max_steps": best})
    fit(fewer, folder, Run(tmp_path / "fewer"), settings)
    for name, tensor in adapters(fewer).items():
        assert torch.equal(adapters(model)[name], tensor), name


def test_evaluating_does_not_change_the_training(folder: Path, tmp_path: Path) -> None:
    losses = []
    for settings in (TRAIN, EVERY_TWO):
        run = Run(tmp_path / str(settings.evaluate_every))
        fit(adapted(folder), folder, run, settings, early_stopping=HELD_OUT)
        losses.append([entry["loss"] for entry in run.learning_curve() if "loss" in entry])
    assert losses[0] == losses[1]


def test_training_stops_after_evaluations_without_improvement(folder: Path, tmp_path: Path) -> None:
    wrong = [row for row in HELD_OUT if row.comparison.label == 0]
    for row in wrong:  # what is learned makes these worse
        object.__setattr__(row, "comparison", Comparison("x", ("",), ("",), ("",), label=1))
    run = Run(tmp_path)
    settings = EVERY_TWO.model_copy(update={"epochs": 30, "patience": 3})
    fit(adapted(folder), folder, run, settings, early_stopping=wrong)
    account = json.loads(run.training.read_text())
    best = account["best_step"]
    assert [step for step in curve(run) if step > best] == [best + 2, best + 4, best + 6]
    assert account["steps"] == best + 6


def test_the_best_step_survives_a_kill(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmsys_unsloth.train import trainer

    straight, run = adapted(folder), Run(tmp_path / "straight")
    fit(straight, folder, run, EVERY_TWO, early_stopping=HELD_OUT)
    ordinary, count = trainer.AnswerTrainer.training_step, iter(range(99))

    def die_in_the_fifth_step(self: Any, *arguments: Any, **more: Any) -> torch.Tensor:
        if next(count) == 4:
            raise KeyboardInterrupt
        return ordinary(self, *arguments, **more)

    killed = Run(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.AnswerTrainer, "training_step", die_in_the_fifth_step)
        with pytest.raises(KeyboardInterrupt):
            fit(adapted(folder), folder, killed, EVERY_TWO, early_stopping=HELD_OUT)
    assert killed.newest_checkpoint() == 4 and json.loads((killed.best_checkpoint / "score.json").read_text())
    resumed = adapted(folder)
    fit(resumed, folder, killed, EVERY_TWO, early_stopping=HELD_OUT)
    assert curve(killed) == curve(run)
    for name, tensor in adapters(straight).items():
        assert torch.equal(adapters(resumed)[name], tensor), name


def comparisons(prompts: int, each: int = 2) -> list[Comparison]:
    texts = [f"question {chr(97 + i % 26) * 9} {i}" for i in range(prompts)]
    return [
        Comparison(f"{i}-{k}", (text,), (f"yes {k}",), (f"no {i}",), label=k % 3)
        for i, text in enumerate(texts)
        for k in range(each)
    ]


def test_the_early_stopping_set_holds_whole_groups_of_prompts() -> None:
    rows, settings = comparisons(400), config("train.evaluate_every=5", "train.early_stopping_rows=90")
    kept, held_out = split_early_stopping(rows, settings)
    assert sorted(row.id for row in (*kept, *held_out)) == sorted(row.id for row in rows)
    assert not {row.prompts for row in kept} & {row.prompts for row in held_out}
    assert len(held_out) == 80  # a tenth, below the maximum
    assert split_early_stopping(rows, settings)[1] == held_out
    assert split_early_stopping(rows, config()) == (rows, [])


def test_a_small_early_stopping_set_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        split_early_stopping(comparisons(50), config("train.evaluate_every=5"))
    assert "only 5 prompts (10 rows); with fewer than 30" in caplog.text


def test_rows_of_a_single_prompt_cannot_be_split() -> None:
    with pytest.raises(UserError, match="all labelled training rows share one prompt"):
        split_early_stopping(comparisons(1, each=9), config("train.evaluate_every=5"))


def test_patience_needs_evaluations() -> None:
    with pytest.raises(
        UserError, match=r"train\.patience = 3: has a meaning only with train\.evaluate_every"
    ):
        config("train.patience=3")
