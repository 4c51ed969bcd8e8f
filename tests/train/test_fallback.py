"""A fast decoder that is rejected, or fails in a step, is replaced by the model's own forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_llama, tolerance
from training_cases import TRAIN, adapted, adapters, fit, rows

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.model import attention
from lmsys_unsloth.model.decoder import FastDecoder, causal_lm

pytestmark = pytest.mark.slow  # each trains a model

PARITY_CALLS = 1
"""Calls of the fast decoder before the first step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def failing(monkeypatch: pytest.MonkeyPatch, calls: int, *, where: str = "forward") -> list[bool]:
    """Let the fast decoder fail after a number of calls; returns whether each call computed gradients."""
    ordinary, seen = FastDecoder.__call__, []

    def call(self: FastDecoder, *arguments: Any, **more: Any) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        if len(seen) <= calls:
            return ordinary(self, *arguments, **more)
        if where == "forward":
            raise RuntimeError("no kernel image is available")
        states = ordinary(self, *arguments, **more)
        states.register_hook(fail)
        return states

    def fail(_gradient: torch.Tensor) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(FastDecoder, "__call__", call)
    return seen


def account(run: Run) -> Any:
    return json.loads(run.training.read_text())


def count_calls(model: Any) -> Callable[[], int]:
    """Count passes of the first layer's MLP in training; a checkpointed one has another in backward."""
    calls: list[bool] = []
    causal_lm(model).model.layers[0].mlp.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, *_: calls.append(module.training)
    )
    return lambda: sum(calls)


@pytest.mark.parametrize(("checkpoint", "passes"), [("auto", 2), ("all", 2), ("none", 1)])
def test_a_rejected_fast_decoder_leaves_checkpointing_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    checkpoint: str, passes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(attention, "choose_attention", lambda *_: lambda q, *_: torch.zeros_like(q))
    model = adapted(folder)
    calls = count_calls(model)
    train = TRAIN.model_copy(update={"checkpoint": checkpoint, "tokens_per_micro_batch": 10_000})
    with caplog.at_level("INFO"):
        fit(model, folder, Run(tmp_path), train)
    assert calls() == passes * account(Run(tmp_path))["steps"]
    assert ("every layer checkpointed" if passes == 2 else "all activations kept") in caplog.text
    assert account(Run(tmp_path))["fast"] is False


@pytest.mark.numeric
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_failure_in_a_later_step_loses_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    settings = TRAIN.model_copy(update={"tokens_per_micro_batch": 24, "evaluate_every": 2})
    straight, broken = adapted(folder), adapted(folder)
    fit(straight, folder, Run(tmp_path / "straight"), settings, early_stopping=rows(6))
    with monkeypatch.context() as patch:
        seen = failing(patch, 99)
        fit(adapted(folder), folder, Run(tmp_path / "counted"), settings, early_stopping=rows(6))
    micro_batches = sum(seen) - PARITY_CALLS
    steps = account(Run(tmp_path / "straight"))["steps"]
    assert steps >= 5 and micro_batches > steps
    failing(monkeypatch, PARITY_CALLS + len(seen) // 2, where=where)
    calls = count_calls(broken)
    with caplog.at_level("WARNING"):
        fit(broken, folder, Run(tmp_path / "broken"), settings, early_stopping=rows(6))
    assert calls() > 0
    warnings = [r.message for r in caplog.records if "the fast decoder failed" in r.message]
    assert len(warnings) == 1 and "no kernel image is available" in warnings[0]
    found, expected = account(Run(tmp_path / "broken")), account(Run(tmp_path / "straight"))
    assert expected["fast"] is True and "fast_steps" not in expected
    assert found["fast"] is False and 0 < found["fast_steps"] < steps
    assert found["steps"] == steps == sum("loss" in point for point in found["learning_curve"])
    rounding = steps * tolerance(products=2, passes=2)  # the errors of the steps add up
    for name, tensor in adapters(straight).items():
        assert (adapters(broken)[name] - tensor).norm() <= rounding * tensor.norm(), name


def test_a_failure_while_evaluating_is_survived_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ordinary, failed = FastDecoder.__call__, []

    def call(self: FastDecoder, *arguments: Any, **more: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            failed.append(True)
            raise RuntimeError("no kernel image is available")
        return ordinary(self, *arguments, **more)

    monkeypatch.setattr(FastDecoder, "__call__", call)
    with caplog.at_level("WARNING"):
        fit(
            adapted(folder), folder, Run(tmp_path), TRAIN.model_copy(update={"evaluate_every": 2}),
            early_stopping=rows(6),
        )  # fmt: skip
    assert len(failed) == 1 and caplog.text.count("the fast decoder failed") == 1
    assert account(Run(tmp_path))["fast_steps"] == 2


def test_the_noise_of_the_embeddings_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import trainer

    ordinary, added = trainer.activate_neftune, []

    def activate(model: Any, alpha: float, *more: Any) -> Any:
        added.append(alpha)
        return ordinary(model, alpha, *more)

    monkeypatch.setattr(trainer, "activate_neftune", activate)
    failing(monkeypatch, PARITY_CALLS + 2)
    model = adapted(folder)
    fit(model, folder, Run(tmp_path), TRAIN.model_copy(update={"neftune_alpha": 5.0}))
    assert added == [5.0]
    assert not causal_lm(model).get_input_embeddings()._forward_hooks  # type: ignore[operator]


def test_a_failure_of_the_reference_decoder_is_raised(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import trainer

    def broken(*_: Any) -> torch.Tensor:
        raise ValueError("shapes")

    monkeypatch.setattr(trainer, "answer_loss", broken)
    with pytest.raises(ValueError, match="shapes"):
        fit(adapted(folder), folder, Run(tmp_path))


def test_micro_batches_grow_again_after_an_out_of_memory_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import tokens_limit, trainer

    monkeypatch.setattr(tokens_limit, "STEPS", 2)
    ordinary, sizes = trainer.answer_loss, []

    def once_too_large(decoder: Any, batch: Any, *more: Any) -> torch.Tensor:
        sizes.append(len(batch))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ordinary(decoder, batch, *more)

    monkeypatch.setattr(trainer, "answer_loss", once_too_large)
    fit(adapted(folder), folder, Run(tmp_path), TRAIN.model_copy(update={"tokens_per_micro_batch": 10_000}))
    assert sizes == [4, 2, 2, 2, 2, 4, 4, 4, 4]
