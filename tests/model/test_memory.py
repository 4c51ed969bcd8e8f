"""The memory that is forecast is the memory that is used."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from factories import config
from tiny import (
    ARCHITECTURES,
    VOCABULARY,
    Architecture,
    kept_for_backward,
    loss_of,
    save_word_tokenizer,
    tiny_model,
    with_adapters,
)

from lmsys_unsloth.model import loading, memory
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.memory import NF4_BYTES, layer_bytes_per_token

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA3 = dict(
    model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128_256,
    num_attention_heads=32, num_key_value_heads=8,
)  # fmt: skip
GEMMA2 = dict(
    model_type="gemma2", hidden_size=3584, intermediate_size=14336, num_hidden_layers=42, vocab_size=256_000,
    num_attention_heads=16, num_key_value_heads=8, head_dim=256,
)  # fmt: skip


def measured_bytes_per_token(model: Callable[[int], Any], row_length: int) -> float:
    """What four more layers keep for the backward pass of two more rows, per layer and token."""
    kept = {}
    for layers, rows in itertools.product((4, 8), (1, 3)):
        batch = collate([np.full(row_length, 7)] * rows, np.eye(3)[:rows])
        decoder = FastDecoder(model(layers).train())
        with kept_for_backward(decoder.model) as counted:
            loss = loss_of(decoder, batch)
        del loss
        kept[layers, rows] = counted.bytes
    return (kept[8, 3] - kept[4, 3] - kept[8, 1] + kept[4, 1]) / (4 * 2 * row_length)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "adapters",
    [{}, {"r": 16}, {"lora_dropout": 0.5}, {"target_modules": ["q_proj", "v_proj", "up_proj"]}],
    ids=str,
)
def test_activation_bytes_are_what_a_layer_keeps(
    architecture: Architecture, dtype: torch.dtype, adapters: dict[str, Any]
) -> None:
    def model(layers: int) -> Any:
        return with_adapters(tiny_model(architecture, num_hidden_layers=layers).to(dtype), **adapters)

    for row_length in (40, 257 if architecture == "llama" else 80):
        forecast = FastDecoder(model(4)).activation_bytes(row_length)
        assert forecast == measured_bytes_per_token(model, row_length)


@pytest.mark.parametrize(("settings", "traced"), [(LLAMA3, 3.543e6), (GEMMA2, 5.253e6)])
def test_activation_bytes_on_a_gpu(settings: dict[str, Any], traced: float) -> None:
    """Traced: bytes per token that all layers keep at full size with unsloth's kernels and bfloat16."""
    layer = layer_bytes_per_token(
        settings, 1024, itemsize=2, ranks=dict.fromkeys(ALL, 16), dropout=False, flash=True, recomputed=True
    )
    layer -= (
        2 * 16 * len(ALL)
    )  # products with A, which unsloth's fused functions recomputed when this was traced
    assert layer * settings["num_hidden_layers"] == pytest.approx(traced, rel=5e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_forecast_as_they_are_loaded(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path)
    save_word_tokenizer(tmp_path, VOCABULARY)
    settings = json.loads((tmp_path / "config.json").read_text())
    for resident, available in (("4bit", 1e10), ("bf16", 0), ("auto", 1e10), ("auto", 0)):
        monkeypatch.setattr(memory, "free_bytes", lambda available=available: available)
        run = config(
            f"model.path={tmp_path}", "model.load_in_4bit=true",
            f"model.resident={resident}", "model.dtype=float32",
        )  # fmt: skip
        sections = run.model, run.lora, run.train
        forecast, _ = memory.forecast_memory(settings, *sections, tokens=64, row_length=64)
        model = loading.load_model(run.model)
        loaded, quantised = 0, 0
        for module in model.modules():
            kept = [p for p in module.parameters(recurse=False) if p.dim() > 1]  # norms are not counted
            if isinstance(module, bnb.nn.Linear4bit):
                quantised += module.in_features * module.out_features
            elif not (architecture == "gemma2" and module is model.get_output_embeddings()):  # type: ignore[operator]
                loaded += sum(p.nbytes for p in kept)
        assert (quantised == 0) == (resident == "bf16" or (resident == "auto" and available > 0))
        assert forecast == loaded + quantised * NF4_BYTES


def test_checkpointing_every_layer_is_forecast_to_keep_their_inputs() -> None:
    found = []
    for choice in ("all", "auto"):
        run = config("model=llama3", f"train.checkpoint={choice}")
        sections = run.model, run.lora, run.train
        found.append(memory.forecast_memory(LLAMA3, *sections, tokens=1000, row_length=1000)[1])
    layer = found[1] / (32 + memory.WORKSPACE)
    assert found[0] == pytest.approx(32 * 1000 * 4096 * 2 + memory.WORKSPACE * layer)
