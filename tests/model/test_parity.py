"""A fast decoder that fails or computes something else is not used; a correct one is, whatever its dtype."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import model_config
from tiny import (
    ARCHITECTURES,
    VOCABULARY,
    Architecture,
    kept_for_backward,
    save_tiny_llama,
    tiny_model,
    with_adapters,
)
from torch import nn
from training_cases import rows

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import attention, decoder, loading
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder, causal_lm
from lmsys_unsloth.model.layers import gated_mlp, projections
from lmsys_unsloth.model.layers.linear import linear
from lmsys_unsloth.model.layers.rope import rope_table
from lmsys_unsloth.model.packing import BLOCK, PackedRows
from lmsys_unsloth.model.parity import (
    LONG,
    UPDATE,
    FallbackDecoder,
    choose_decoder,
    perturbed,
    random_updates,
    relative_distance,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def rows_of(lengths: list[int]) -> list[Any]:
    random = np.random.default_rng(0)
    ids = [random.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths]
    return [replace(row, input_ids=row_ids) for row, row_ids in zip(rows(len(ids)), ids, strict=True)]


def fresh(architecture: Architecture, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny model with adapters as they are before training: B is zero."""
    model = with_adapters(tiny_model(architecture, max_position_embeddings=1024, **changes).to(dtype))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float() * ("lora_B" not in name)
    return model


def distances(text: str) -> list[tuple[float, float]]:
    """Pairs of the distance and its limit in the log."""
    found = re.findall(r"([0-9.e+-]+|nan) \(limit ([0-9.e+-]+)\)", text)
    return [(float(distance), float(limit)) for distance, limit in found]


@pytest.mark.parametrize("trouble", ["wrong", "not a number", "broken"])
def test_a_wrong_or_broken_fast_decoder_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    model = loading.load_model(model_config(folder))
    assert isinstance(choose_decoder(model, rows(), fast=True), FastDecoder)
    assert isinstance(choose_decoder(model, rows(), fast=False), ReferenceDecoder)

    def attend(q: torch.Tensor, *_: Any) -> torch.Tensor:
        if trouble == "broken":
            raise RuntimeError("no kernel for this GPU")
        return torch.full_like(q, torch.nan if trouble == "not a number" else 0.0)

    monkeypatch.setattr(attention, "choose_attention", lambda *_: attend)
    with caplog.at_level("WARNING"):
        assert isinstance(choose_decoder(model, rows(), fast=True), ReferenceDecoder)
    assert "it is not used" in caplog.text


@pytest.mark.numeric
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_correct_fast_decoder_is_used_with_margin(
    architecture: Architecture, dtype: torch.dtype, training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = fresh(architecture, dtype)
    with caplog.at_level("INFO"):
        decoder = choose_decoder(model, rows_of([5, 9, 20, 40, 90, 300]), fast=True, training=training)
    assert isinstance(decoder, FastDecoder), caplog.text
    found = distances(caplog.text)
    assert len(found) == 1 + training + (architecture == "gemma2")  # with the row beyond the window
    assert all(2 * distance < limit for distance, limit in found), found


def values_without_adapters(module: Any, x: torch.Tensor) -> torch.Tensor:
    return linear(module.base_layer if module.out_features == 32 else module, x)  # keys and values


def without_gradients_of_a(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute the right states; the A matrices get no gradient."""
    weights = [a.weight for a in module.lora_A.values()]
    for weight in weights:
        weight.requires_grad_(False)
    out = linear(module, x)
    for weight in weights:
        weight.requires_grad_(True)
    return out


def as_one_row(attend: Any) -> Any:
    """Let rows attend to those before them."""

    def wrong(q: Any, k: Any, v: Any, rows: PackedRows, *more: Any) -> Any:
        joined = PackedRows((len(k),), (len(k),), q.device) if len(q) == len(k) else rows
        return attend(q, k, v, joined, *more)

    return wrong


def changed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Change scale, cap or window of the attention, given a function of the right value of each."""
    ordinary = attention.choose_attention
    same = {name: changes.get(name, lambda value: value) for name in ("scale", "cap", "window")}

    def attend(q: Any, k: Any, v: Any, rows: PackedRows, scale: float, cap: Any, window: Any) -> Any:
        chosen = ordinary(rows, q.dtype, cap)
        return chosen(q, k, v, rows, same["scale"](scale), same["cap"](cap), same["window"](window))

    monkeypatch.setattr(attention, "choose_attention", lambda *_: attend)


def is_used(model: nn.Module, lengths: list[int], *, training: bool = True) -> bool:
    return isinstance(choose_decoder(model, rows_of(lengths), fast=True, training=training), FastDecoder)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mistake", ["as one row", "no positions", "adapters", "gradients of A"])
def test_mistakes_are_found(
    architecture: Architecture, dtype: torch.dtype, mistake: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    ordinary = attention.choose_attention
    if mistake == "as one row":
        monkeypatch.setattr(attention, "choose_attention", lambda *a: as_one_row(ordinary(*a)))
    elif mistake == "no positions":
        monkeypatch.setattr(decoder, "rope_table", lambda f, factor, at, d: rope_table(f, factor, 0 * at, d))
    else:
        wrong = values_without_adapters if mistake == "adapters" else without_gradients_of_a
        monkeypatch.setattr(gated_mlp, "_plain_parts", lambda *_: None)
        for module in (decoder, gated_mlp, projections):
            monkeypatch.setattr(module, "linear", lambda part, x, _: wrong(part, x))
            if module is not decoder:
                monkeypatch.setattr(module, "linears", lambda parts, x, _: tuple(wrong(p, x) for p in parts))
    assert not is_used(fresh(architecture, dtype), [5, 9, 20, 40])
    assert "disagrees" in caplog.text and distances(caplog.text)


@pytest.mark.numeric
@pytest.mark.parametrize("change", ["scale", "cap", "window"])
def test_small_mistakes_are_found_in_float32(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"scale": lambda s: 1.01 * s, "cap": lambda _: None, "window": lambda w: w and w + 1}
    model = fresh("gemma2")
    assert is_used(model, [5, 9, 20, 40])
    changed(monkeypatch, **{change: wrong[change]})
    assert not is_used(model, [5, 9, 20, 40])


def test_the_window_is_crossed_where_a_row_exceeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gemma2", sliding_window=LONG + 20)
    changed(monkeypatch, window=lambda _: None)
    assert is_used(model, [5, 6, 7, 8, LONG + 20])
    assert not is_used(model, [5, 6, 7, 8, LONG + 60])


def test_the_shortest_rows_and_the_beginning_of_the_longest_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordinary, seen = FastDecoder.__call__, []

    def call(self: FastDecoder, input_ids: torch.Tensor, lengths: Any, last: int = 1) -> torch.Tensor:
        seen.append(tuple(lengths))
        return ordinary(self, input_ids, lengths, last)

    monkeypatch.setattr(FastDecoder, "__call__", call)
    assert is_used(fresh("llama"), [50, 9, 300, 40, 20, 5])
    assert seen == [(5, 9, 20, 40, LONG)]
    assert LONG > 2 * BLOCK


def test_a_failing_reference_decoder_does_not_replace_the_fast_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("mask too small")

    model = fresh("llama")
    monkeypatch.setattr(ReferenceDecoder, "__call__", broken)
    assert is_used(model, [5, 9])
    assert "RuntimeError: mask too small" in caplog.text and "could not be checked" in caplog.text
    monkeypatch.setattr(
        ReferenceDecoder, "__call__", lambda _, ids, n: torch.full((len(n), 1, 64), torch.nan)
    )
    assert is_used(model, [5, 9], training=False)
    assert "not finite" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_the_check_leaves_no_trace(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_adapters(tiny_model("llama"), lora_dropout=0.5).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    random, hooks = torch.get_rng_state(), len(list(_hooks(model)))
    if fails:
        monkeypatch.setattr(decoder, "gated_mlp", lambda *_: torch.zeros(()).item() / 0)
    assert is_used(model, [5, 9, 20]) is not fails
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and len(list(_hooks(model))) == hooks


def _hooks(model: nn.Module) -> Any:
    return (hook for module in model.modules() for hook in module._forward_hooks)


def test_updates_are_random_within_the_block_and_the_same_each_time() -> None:
    model, drawn = fresh("llama"), []
    b = [module.lora_B["default"].weight for module in model.modules() if hasattr(module, "lora_B")]
    for _ in range(2):
        with random_updates(model):
            drawn.append([weight.detach().clone() for weight in b])
        assert not any(weight.any() for weight in b)
    assert all(weight.all() for weight in drawn[0])
    assert all(torch.equal(*pair) for pair in zip(*drawn, strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][-1])


def test_updates_have_the_documented_deviation() -> None:
    model = with_adapters(tiny_model("llama"), r=9)
    layers = [module for module in model.modules() if hasattr(module, "lora_B")]
    with random_updates(model):
        for layer in layers:
            weight = layer.lora_B["default"].weight
            deviation = UPDATE / (layer.scaling["default"] * 3)
            assert float(weight.std()) == pytest.approx(deviation, rel=4 / (2 * weight.numel()) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perturbations_are_within_the_machine_epsilon_in_both_directions(dtype: torch.dtype) -> None:
    model, ids = fresh("llama", dtype), torch.arange(100) + 3
    embeddings, epsilon = causal_lm(model).get_input_embeddings(), torch.finfo(dtype).eps  # type: ignore[operator]
    before = embeddings(ids).double()
    with perturbed(model):
        change = embeddings(ids).double() / before - 1
    assert torch.equal(embeddings(ids).double(), before)
    assert change.abs().max() <= 1.5 * epsilon * (1 + epsilon)  # half an epsilon is that of rounding
    assert change.min() < -epsilon / 2 and change.max() > epsilon / 2


def test_distances_are_relative_to_the_expected_vector_and_the_largest_counts() -> None:
    expected = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    found = expected + torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    assert relative_distance(found, expected) == pytest.approx(0.1)
    assert relative_distance(8 * found, 8 * expected) == pytest.approx(0.1)
    several = torch.stack([expected, expected]), torch.stack([found, expected])
    assert relative_distance(several[1], several[0]) == pytest.approx(0.1)


def test_the_reference_decoder_is_checked_without_compiling_it() -> None:
    model, compiled = fresh("llama"), []

    def backend(graph: Any, _inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    layer = causal_lm(model).model.layers[0]  # type: ignore[index,union-attr]
    layer.forward = torch.compile(layer.forward, backend=backend)
    assert is_used(model, [5, 9]) and not compiled


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_reference_decoder_checkpoints_and_computes_the_same(architecture: Architecture) -> None:
    model = with_adapters(tiny_model(architecture), lora_dropout=0.1).train()
    ids, kept, gradients = torch.arange(60) + 3, [], []
    for checkpointed in (False, True):
        decoder = ReferenceDecoder(model)
        decoder.checkpointed = checkpointed
        torch.manual_seed(0)
        model.zero_grad()
        with kept_for_backward(model) as counted:
            states = decoder(ids, (40, 20))
        kept.append(counted.bytes)
        states.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert kept[1] < 0.2 * kept[0]
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_fast_decoder_that_fails_is_replaced_for_all_who_hold_it(caplog: pytest.LogCaptureFixture) -> None:
    model, drawn, notes = fresh("llama"), [], []
    decoder = FallbackDecoder(FastDecoder(model), checkpointed=True)
    decoder.on_failure = lambda: notes.append("failed")

    def compute() -> torch.Tensor:
        drawn.append(torch.rand(3))
        decoder(torch.arange(9), (4, 5)).sum().backward()
        if isinstance(decoder.current, FastDecoder):
            raise RuntimeError("no kernel image is available")
        return decoder(torch.arange(9), (4, 5))

    states = decoder.run(compute)
    assert torch.equal(*drawn) and notes == ["failed"]  # the same random numbers
    assert isinstance(decoder.current, ReferenceDecoder) and decoder.current.checkpointed
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    states = ReferenceDecoder(model)(torch.arange(9), (4, 5))
    states.sum().backward()
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in once.items())
    decoder.run(lambda: decoder(torch.arange(9), (4, 5)))
    assert not FallbackDecoder(FastDecoder(model)).checkpointed
    assert caplog.text.count("the fast decoder failed (RuntimeError: no kernel image") == 1


def test_on_a_gpu_its_random_numbers_are_repeated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states = fresh("llama"), []
    parameter = SimpleNamespace(device=torch.device("cuda"), grad=None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: "state of the GPU")
    monkeypatch.setattr(torch.cuda, "set_rng_state", states.append)
    decoder = FallbackDecoder(FastDecoder(model))
    monkeypatch.setattr(model, "parameters", lambda: iter([parameter]))

    def compute() -> None:
        if isinstance(decoder.current, FastDecoder):
            raise RuntimeError("no kernel image is available")

    decoder.run(compute)
    assert states == ["state of the GPU"]


@pytest.mark.parametrize(
    "error", [UserError("lower it"), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_errors_of_others_do_not_replace_the_fast_decoder(error: BaseException) -> None:
    decoder = FallbackDecoder(FastDecoder(fresh("llama")))

    def broken() -> None:
        raise error

    with pytest.raises(type(error)):
        decoder.run(broken)
    assert isinstance(decoder.current, FastDecoder)
