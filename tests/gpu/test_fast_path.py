"""On a GPU: kernels against plain PyTorch, the fast decoder against the reference decoder, and a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import lora_config, model_config
from tiny import (
    ARCHITECTURES,
    Architecture,
    kept_for_backward,
    loss_of,
    save_random_model,
    save_word_tokenizer,
    tolerance,
)
from training_cases import TRAIN, fit, rows, with_head

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model import loading, parity, trained_weights
from lmsys_unsloth.model.attention import flex, row_by_row, varlen
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder
from lmsys_unsloth.model.layers import fp8
from lmsys_unsloth.model.packing import PackedRows

pytestmark = pytest.mark.gpu

LENGTHS = (300, 1, 77, 1024)
LORA = lora_config(r=16, alpha=32.0)


def random_model(architecture: Architecture, folder: Path, width: int = 512, **changes: Any) -> ModelConfig:
    save_random_model(architecture, folder, width=width, layers=3)
    save_word_tokenizer(folder, 49152)
    settings = {"load_in_4bit": True, "resident": "4bit", "dtype": "auto"}
    return model_config(folder, **{**settings, "max_seq_length": 2048, **changes})


@pytest.mark.parametrize(
    ("attend", "cap", "window", "head_dim"),
    [(varlen, None, None, 128), (flex, None, None, 128), (flex, 50.0, None, 256), (flex, 50.0, 64, 256)],
)
def test_kernels_give_what_plain_pytorch_gives(
    attend: Any, cap: float | None, window: int | None, head_dim: int
) -> None:
    torch.manual_seed(0)
    layout = PackedRows(LENGTHS, LENGTHS, torch.device("cuda"))
    exact = [torch.randn(sum(LENGTHS), heads, head_dim, device="cuda") for heads in (8, 2, 2)]
    up = torch.randn(sum(LENGTHS), 8, head_dim, device="cuda")

    def run(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in exact]
        out = function(*inputs, layout, head_dim**-0.5, cap, window)
        return [out.detach(), *torch.autograd.grad(out, inputs, up.to(dtype))]

    results = zip("oqkv", run(attend, torch.bfloat16), run(row_by_row, torch.float32), strict=True)
    for name, found, expected in results:
        distance = (found.float() - expected).norm() / expected.norm()
        assert distance < tolerance(torch.bfloat16, terms=1, products=1), (name, float(distance))


@pytest.mark.skipif(not fp8.is_supported(), reason="the GPU has no tensor cores for fp8")
@pytest.mark.parametrize("columns", [512, 576, 14336])
def test_fp8_products_are_those_of_their_emulation(columns: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(77, columns).bfloat16(), torch.randn(256, columns).bfloat16()
    x[3] = 0
    expected = fp8.product(fp8.quantize_rows(x), fp8.quantize_rows(w), torch.float32)
    for given in (x.cuda(), x.T.contiguous().cuda().T):
        quantized = fp8.quantize_rows(given)
        torch.testing.assert_close(quantized.scales.cpu(), fp8.quantize_rows(x).scales)
        values = quantized.values.cpu().float()
        same = values == fp8.quantize_rows(x).values.float()
        assert same.float().mean() > 0.999  # a quotient may be rounded the other way
        found = fp8.product(quantized, fp8.quantize_rows(w.cuda()), torch.bfloat16).cpu().float()
        assert (found - expected).norm() < tolerance(torch.bfloat16, terms=1, products=1) * expected.norm()


@pytest.mark.skipif(not fp8.is_supported(), reason="the GPU has no tensor cores for fp8")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fast_decoder_computes_in_fp8(architecture: Architecture, tmp_path: Path) -> None:
    config = random_model(architecture, tmp_path)
    model = with_head(trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0))
    decoder = loading.make_decoder(model, fast=True)
    assert isinstance(decoder, FastDecoder)
    batch = collate([np.full(n, 7) for n in LENGTHS], np.eye(3)[[0, 1, 2, 0]]).to(torch.device("cuda"))
    found = []
    for attached in (False, True):
        if attached:
            fp8.attach(decoder.layers, backward=True)
        model.zero_grad()
        loss = loss_of(decoder, batch)
        loss.backward()
        gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        found.append((float(loss), torch.cat(gradients)))
    (loss_before, before), (loss_after, after) = found
    assert abs(loss_after - loss_before) < 0.05 * loss_before
    assert 0 < (after - before).norm() < 0.3 * before.norm()  # 0.04 a product, three layers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("resident", ["4bit", "bf16"])
def test_losses_and_gradients_of_both_decoders_agree(
    architecture: Architecture, resident: str, tmp_path: Path
) -> None:
    config = random_model(architecture, tmp_path, resident=resident)
    model = trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    random = np.random.default_rng(0)
    batch = collate([random.integers(3, 30_000, n) for n in LENGTHS], np.eye(3)[[0, 1, 2, 0]]).to(
        torch.device("cuda")
    )
    fast = loading.make_decoder(model, fast=True)
    assert isinstance(fast, FastDecoder) and fast.kernels is not None
    found = []
    for decoder in (fast, ReferenceDecoder(model)):
        model.zero_grad()
        # unsloth compiles Gemma 2's own forward pass, which takes most of a minute.
        with torch.compiler.set_stance("force_eager" if decoder is not fast else "default"):
            loss = loss_of(decoder, batch)
            loss.backward()
        found.append((loss, {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}))
    assert abs(found[0][0] - found[1][0]) < 0.05 * found[1][0]
    assert found[0][1].keys() == found[1][1].keys() and found[0][1]
    total = sum(float(g.norm() ** 2) for g in found[1][1].values()) ** 0.5
    distance = sum(float((g - found[1][1][n]).norm() ** 2) for n, g in found[0][1].items()) ** 0.5
    assert distance < 0.1 * total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_training_step_never_waits_for_the_gpu(architecture: Architecture, tmp_path: Path) -> None:
    config = random_model(architecture, tmp_path)
    model = trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0)
    decoder = loading.make_decoder(model, fast=True)
    batch = collate([np.full(n, 7) for n in LENGTHS], np.eye(3)[[0, 1, 2, 0]])
    device = torch.device("cuda")
    loss_of(decoder, batch.to(device)).backward()  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(decoder, batch.to(device)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activation_bytes_are_what_is_kept(architecture: Architecture, tmp_path: Path) -> None:
    config = random_model(architecture, tmp_path)
    model = trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0)
    decoder, kept = loading.make_decoder(model, fast=True), []
    assert isinstance(decoder, FastDecoder)
    for rows_in_batch in (1, 5):
        ids = [np.full(512, 7)] * rows_in_batch
        batch = collate(ids, np.eye(3)[[0, 1, 2, 0, 1][:rows_in_batch]]).to(torch.device("cuda"))
        with kept_for_backward(model) as counted:
            loss = loss_of(decoder, batch)
        del loss
        kept.append(counted.bytes)
    measured = (kept[1] - kept[0]) / (4 * 512)
    # Of three layers the last keeps only keys, values and its input.
    assert 1.9 < measured / decoder.activation_bytes(512) < 2.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_loss(architecture: Architecture, tmp_path: Path) -> None:
    config = random_model(architecture, tmp_path / "model", resident="auto")
    model = with_head(trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0))
    data = rows(48)
    train = TRAIN.model_copy(
        update={
            "epochs": 8, "optimizer": "adamw_8bit", "learning_rate": 2e-3, "tokens_per_micro_batch": "auto",
        }
    )  # fmt: skip
    fit(model, tmp_path / "model", Run(tmp_path / "RUN"), train, data)
    summary = json.loads((tmp_path / "RUN" / "training.json").read_text())
    assert summary["fast"] and summary["padding_share"] == 0
    decoder = parity.choose_decoder(model, data, fast=True)
    assert isinstance(decoder, FastDecoder)
    probabilities = score_rows(decoder, data, 4096)
    losses = -np.log(probabilities[np.arange(len(data)), [row.comparison.label for row in data]])  # type: ignore[arg-type]
    assert losses.mean() < 0.8  # a model that knows nothing has 1.1


def test_a_batch_too_large_for_the_gpu_is_trained_in_parts(tmp_path: Path, caplog: Any) -> None:
    config = random_model("llama", tmp_path / "model", resident="bf16")
    model = with_head(trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0))
    # A limit of this process: memory taken from the GPU would be missing in tests that run at the same time.
    limit = (torch.cuda.memory_reserved() + 1.5e9) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        train = TRAIN.model_copy(
            update={"rows_per_step": 512, "tokens_per_micro_batch": 500_000, "checkpoint": "none"}
        )
        with caplog.at_level("WARNING"):
            fit(model, tmp_path / "model", Run(tmp_path / "RUN"), train, _long_rows(512))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "same step" in caplog.text
    assert json.loads((tmp_path / "RUN" / "training.json").read_text())["steps"] == 1


def _long_rows(count: int) -> list[Any]:
    from dataclasses import replace

    random = np.random.default_rng(0)
    ids = [random.integers(100, 2000, 900).astype(np.int32) for _ in range(count)]
    return [replace(row, input_ids=row_ids) for row, row_ids in zip(rows(count), ids, strict=True)]
