"""Frozen products in fp8 are those of the rounded factors, and used only where answers stay the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import config, train_config
from tiny import ARCHITECTURES, Architecture, loss_of, save_tiny_llama, tiny_model, tolerance, with_adapters
from torch import Tensor, nn
from training_cases import adapted, fit, rows, with_head

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.model import fp8, memory, parity
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder
from lmsys_unsloth.model.layers import fp8 as products
from lmsys_unsloth.model.layers.linear import linear

LLAMA3 = dict(
    model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128_256,
    num_attention_heads=32, num_key_value_heads=8,
)  # fmt: skip

HALF_STEP = 2.0**-4
"""Largest relative rounding error of E4M3, which has three binary digits after the first."""


def test_every_row_is_rounded_with_its_own_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 64) * torch.tensor([1e-6, 1.0, 1e4, 1.0, 1.0, 1.0])[:, None]
    x[3] = 0
    found = products.quantize_rows(x)
    assert found.values.dtype == torch.float8_e4m3fn and found.scales.shape == (6, 1)
    assert (found.values.float().abs().amax(dim=1)[[0, 1, 2, 4, 5]] == products.LARGEST).all()
    back = found.values.float() * found.scales
    smallest_normal = 2.0**-6 * found.scales
    assert ((back - x).abs() <= HALF_STEP * torch.maximum(x.abs(), smallest_normal)).all()
    assert not back[3].any()


def rounded(x: Tensor) -> Tensor:
    found = products.quantize_rows(x)
    return found.values.float() * found.scales


@pytest.mark.numeric
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["fused", "general"])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_rounded_factors(dropout: float, bias: bool) -> None:
    torch.manual_seed(0)
    layer: Any = with_adapters(
        nn.Sequential(nn.Linear(64, 48, bias=bias)), lora_dropout=dropout, target_modules=["0"]
    )
    module = layer.base_model.model[0]
    products.attach([layer], backward=True)
    x, up = torch.randn(2, 9, 64, requires_grad=True), torch.randn(2, 9, 48)
    y = linear(module, x)
    y.backward(up)
    w = module.base_layer.weight.detach()
    a, b = (part.default.weight.detach() for part in (module.lora_A, module.lora_B))
    scale, flat, gradient = module.scaling["default"], x.detach().reshape(-1, 64), up.reshape(-1, 48)
    expected = rounded(flat) @ rounded(w).T + scale * (flat @ a.T) @ b.T
    if bias:
        expected += module.base_layer.bias
    d_x = rounded(gradient) @ rounded(w.T.contiguous()).T + scale * (gradient @ b) @ a
    bound = tolerance(terms=64, products=2)
    torch.testing.assert_close(y.detach().reshape(-1, 48), expected, atol=bound, rtol=bound)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.reshape(-1, 64), d_x, atol=bound, rtol=bound)
    d_a = scale * (gradient @ b).T @ flat
    torch.testing.assert_close(module.lora_A.default.weight.grad, d_a, atol=10 * bound, rtol=bound)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_fast_decoder_uses_it_and_adapters_stay(architecture: Architecture) -> None:
    model = with_adapters(tiny_model(architecture))
    model.requires_grad_(False)
    decoder = FastDecoder(model)
    ids = torch.arange(3, 30)
    before, own = decoder(ids, [27]), ReferenceDecoder(model)(ids, [27])
    products.attach(decoder.layers, backward=False)
    names = [name for name, module in model.named_modules() if products.weight_of(module) is not None]
    assert len(names) == 7 * 4 and not [name for name in names if "lora_" in name]
    after = decoder(ids, [27])
    assert 0 < float((after - before).norm() / before.norm()) < 1  # a random model amplifies rounding
    torch.testing.assert_close(ReferenceDecoder(model)(ids, [27]), own, atol=0, rtol=0)
    products.detach([model])
    torch.testing.assert_close(decoder(ids, [27]), before, atol=0, rtol=0)


def test_layers_below_the_first_trained_one_need_no_second_copy() -> None:
    targets = ["q_proj", "up_proj", "down_proj"]
    model = with_head(with_adapters(tiny_model("llama"), target_modules=targets, layers_to_transform=[2, 3]))
    decoder = FastDecoder(model)
    assert fp8.use_fp8(decoder, []) is None
    copies = [
        {products.weight_of(m).backward is not None for m in layer.modules() if products.weight_of(m)}  # type: ignore[union-attr]
        for layer in decoder.layers
    ]
    assert copies == [{False}, {False}, {True}, {True}]
    loss_of(decoder, collate([np.full(9, 7)] * 2, np.eye(3)[:2])).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_sizes_that_the_tensor_cores_lack_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 16, not \(48, 20\)"):
        products.attach([nn.Linear(20, 48).requires_grad_(False)], backward=False)


@pytest.mark.parametrize("accepted", [True, False])
def test_it_is_given_up_where_answers_change(
    accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(save_tiny_llama(tmp_path))
    monkeypatch.setattr(fp8, "LARGEST_DIVERGENCE", 10.0 if accepted else 0.0)
    with caplog.at_level("INFO"):
        decoder = parity.choose_decoder(model, rows(), fast=True, fp8=True)
    assert isinstance(decoder, FastDecoder)
    attached = any(products.weight_of(module) is not None for module in model.modules())
    assert attached == accepted
    assert ("frozen products in fp8: divergence 0.0" in caplog.text) == accepted
    assert ("is not used, as it changes answers too much" in caplog.text) != accepted


def test_it_is_given_up_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(save_tiny_llama(tmp_path))

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no kernel for this GPU")

    monkeypatch.setattr(products, "product", broken)
    assert isinstance(parity.choose_decoder(model, rows(), fast=True, fp8=True), FastDecoder)
    assert "is not used, as it failed (RuntimeError: no kernel for this GPU)" in caplog.text
    assert not [module for module in model.modules() if products.weight_of(module) is not None]


def test_a_second_choice_compares_with_the_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = adapted(save_tiny_llama(tmp_path)), []
    monkeypatch.setattr(fp8, "LARGEST_DIVERGENCE", 10.0)
    monkeypatch.setattr(parity, "use_fp8", lambda *given: found.append(fp8.use_fp8(*given)))
    for _ in range(2):
        assert isinstance(parity.choose_decoder(model, rows(), fast=True, fp8=True), FastDecoder)
    assert found[0] == found[1] > 0


def test_divergence_is_the_expected_rise_of_log_loss() -> None:
    p, q = (
        torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]),
        torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]),
    )
    assert fp8.mean_divergence(p, q) == pytest.approx((0.25 * np.log(2) + np.log(2)) / 2)
    assert fp8.mean_divergence(p, p) == 0


def test_a_training_learns_in_fp8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found, computed = save_tiny_llama(tmp_path / "model"), [], products.product
    model = adapted(folder, load_in_4bit=True)
    monkeypatch.setattr(fp8, "LARGEST_DIVERGENCE", 10.0)

    def counted(*arguments: Any) -> Tensor:
        found.append(computed(*arguments))
        return found[-1]

    monkeypatch.setattr(products, "product", counted)
    train = train_config(epochs=10, learning_rate=2e-2, loss="answers")
    fit(model, folder, Run(tmp_path / "RUN"), train, fp8=True)
    account = json.loads((tmp_path / "RUN" / "training.json").read_text())
    losses = [point["loss"] for point in account["learning_curve"]]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    # Seven products a layer forward; backward none into the first layer's queries, keys and values.
    assert len(found) > account["steps"] * 14


def test_its_memory_is_forecast() -> None:
    forecast = {}
    for resident in ("4bit", "fp8"):
        chosen = config("model.load_in_4bit=true", f"model.resident={resident}")
        forecast[resident], _ = memory.forecast_memory(
            LLAMA3, chosen.model, chosen.lora, chosen.train, tokens=1024, row_length=1024
        )
    linear_weights = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert forecast["fp8"] - forecast["4bit"] == 2 * linear_weights
