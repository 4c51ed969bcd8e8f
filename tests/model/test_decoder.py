"""The fast decoder computes what the reference decoder computes, and leaves out what it is said to."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    ANSWERS,
    ARCHITECTURES,
    LONG_ANSWERS,
    Architecture,
    kept_for_backward,
    loss_of,
    probabilities,
    random_rows,
    tiny_model,
    tolerance,
    with_adapters,
)

from lmsys_unsloth.model import attention
from lmsys_unsloth.model.batch import Batch, collate
from lmsys_unsloth.model.decoder import Decoder, FastDecoder, ReferenceDecoder
from lmsys_unsloth.model.layers.rope import rope_frequencies, rope_table
from lmsys_unsloth.model.packing import PackedRows

LABELS = np.eye(3)[[0, 1, 2, 1, 0, 2]]
UPPER_HALF: Any = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [2, 3]}


def labelled(longest: int = 40) -> Batch:
    return collate(random_rows(6, longest=longest), LABELS)


def loss_and_gradients(decoder: Decoder, batch: Batch, kind: Any = "answers", answers: Any = ANSWERS) -> Any:
    decoder.model.zero_grad()
    loss = loss_of(decoder, batch, kind, answers)
    loss.backward()
    gradients = {n: p.grad for n, p in decoder.model.named_parameters() if p.requires_grad}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def assert_same(one: Any, other: Any) -> None:
    """Compare losses, and gradients tensor by tensor by the norm of their difference, relative."""
    torch.testing.assert_close(one[0], other[0], rtol=tolerance(), atol=0)
    assert one[1].keys() == other[1].keys() and one[1]
    for name, gradient in one[1].items():
        difference = float((gradient - other[1][name]).norm() / other[1][name].norm())
        assert difference <= tolerance(passes=2), name


def assert_equal(one: Any, other: Any) -> None:
    """The same computation: equal losses and gradients."""
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys() and one[1]
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("kind", "answers"), [("answers", ANSWERS), ("vocabulary", ANSWERS), ("answers", LONG_ANSWERS)]
)
def test_losses_and_lora_gradients_equal_the_reference_decoders(
    architecture: Architecture, kind: str, answers: Any
) -> None:
    model, batch = with_adapters(tiny_model(architecture)), labelled()
    fast = loss_and_gradients(FastDecoder(model), batch, kind, answers)
    assert_same(fast, loss_and_gradients(ReferenceDecoder(model), batch, kind, answers))


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointed", [0, 3])
def test_flex_attention_gives_the_same_gradients(
    architecture: Architecture,
    checkpointed: int,
    flex_as_on_cuda: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = with_adapters(tiny_model(architecture)), labelled()
    expected = loss_and_gradients(ReferenceDecoder(model), batch)
    on_cpu = attention.choose_attention

    def as_on_cuda(rows: PackedRows, dtype: torch.dtype, cap: float | None) -> Any:
        return attention.flex if rows.query_lengths == rows.lengths else on_cpu(rows, dtype, cap)

    monkeypatch.setattr(attention, "choose_attention", as_on_cuda)
    fast = FastDecoder(model)
    fast.checkpointed = checkpointed
    assert_same(loss_and_gradients(fast, batch), expected)
    assert len(flex_as_on_cuda) == (1 if architecture == "llama" else 2), "one with a window, one without"


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_checkpointed_layers_give_the_same_gradients_and_keep_less(
    architecture: Architecture, count: int
) -> None:
    model, batch = with_adapters(tiny_model(architecture)), labelled()
    decoder = FastDecoder(model)
    kept_all, expected = kept(decoder, batch), loss_and_gradients(decoder, batch)
    decoder.checkpointed = count
    assert_equal(loss_and_gradients(decoder, batch), expected)
    assert kept(decoder, batch) < kept_all * (1 - 0.2 * min(count, 3))


def kept(decoder: Decoder, batch: Batch) -> int:
    with kept_for_backward(decoder.model) as counted:
        loss = loss_of(decoder, batch)
    del loss
    return counted.bytes


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_lower_layers_keep_nothing(architecture: Architecture) -> None:
    whole = with_adapters(tiny_model(architecture, num_hidden_layers=12))
    upper = copy.deepcopy(whole)
    for name, parameter in upper.named_parameters():
        if any(f".layers.{layer}." in name for layer in range(6)):
            parameter.requires_grad_(False)
    batch, decoder = labelled(), FastDecoder(upper)
    assert decoder.first_trained == 6
    assert kept(decoder, batch) <= 0.55 * kept(FastDecoder(whole), batch)
    loss, gradients = loss_and_gradients(decoder, batch)
    expected_loss, expected = loss_and_gradients(FastDecoder(whole), batch)
    assert len(gradients) == len(expected) // 2
    assert_equal((loss, gradients), (expected_loss, {name: expected[name] for name in gradients}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fast_decoder_keeps_far_less_than_the_reference_decoder(architecture: Architecture) -> None:
    model, batch = with_adapters(tiny_model(architecture)), labelled()
    assert kept(FastDecoder(model), batch) < 0.6 * kept(ReferenceDecoder(model), batch)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_is_computed_at_the_slot_only(architecture: Architecture) -> None:
    model, batch = tiny_model(architecture).requires_grad_(False), labelled()
    seen: dict[str, int] = {}
    last = model.model.layers[-1]
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
        last.get_submodule(name).register_forward_hook(
            lambda _, inputs, __, name=name: seen.__setitem__(name, inputs[0].shape[1])
        )
    loss_of(FastDecoder(model), batch)
    rows, tokens = len(batch), sum(batch.lengths)
    assert seen == {
        "self_attn.q_proj": rows, "self_attn.k_proj": tokens, "self_attn.o_proj": rows, "mlp.down_proj": rows,
    }  # fmt: skip


def test_checkpoints_needed_grow_as_memory_shrinks() -> None:
    decoder = FastDecoder(with_adapters(tiny_model("llama")))
    layer = decoder.activation_bytes(40) * 1000
    assert decoder.checkpoints_needed(1000, 40, 100 * layer) == 0
    assert decoder.checkpoints_needed(1000, 40, 5.5 * layer) == 1
    assert decoder.checkpoints_needed(1000, 40, layer) == 4
    wanted = [decoder.checkpoints_needed(1000, 40, share * layer) for share in (7, 6, 5, 4, 3, 2)]
    assert wanted == sorted(wanted)
    fit = decoder.max_micro_batch_tokens(40, 1e9)
    assert decoder.checkpoints_needed(fit - 1, 40, 1e9) == 0 < decoder.checkpoints_needed(fit + 1, 40, 1e9)


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_rope_table_is_the_models_own(architecture: Architecture) -> None:
    model: Any = tiny_model(architecture)
    positions = torch.tensor([0, 1, 2, 70, 255])
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32), positions[None])
    found = rope_table(*rope_frequencies(model.config), positions, torch.float32)
    # Angles reach the largest position; their rounding is the error of sine and cosine.
    atol = tolerance(terms=1, products=1, scale=float(positions.max()))
    torch.testing.assert_close(found[0].squeeze(1), cos[0, :, :8], atol=atol, rtol=0)
    torch.testing.assert_close(found[1].squeeze(1), sin[0, :, :8], atol=atol, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    model, batch = get_peft_model(tiny_model("llama"), settings), labelled()
    decoder = FastDecoder(model)
    with torch.no_grad():
        model.train()
        assert loss_of(decoder, batch) != loss_of(decoder, batch)
        model.eval()
        assert loss_of(decoder, batch) == loss_of(decoder, batch)


@pytest.mark.numeric
@pytest.mark.parametrize("special", ["dora", "bias", "merged", "disabled"])
def test_special_adapters_are_computed_by_peft(special: str) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, use_dora=special == "dora",
        lora_bias=special == "bias",
    )  # fmt: skip
    model, batch = get_peft_model(tiny_model("llama"), settings).eval(), labelled()
    if special == "merged":
        model.merge_adapter()
    if special == "disabled":
        model.base_model.disable_adapter_layers()
    with torch.no_grad():
        fast, expected = (loss_of(decoder(model), batch) for decoder in (FastDecoder, ReferenceDecoder))
    torch.testing.assert_close(fast, expected, rtol=tolerance(), atol=0)


def test_another_architecture_is_refused() -> None:
    model: Any = tiny_model("llama")
    model.config.model_type = "gpt_neox"
    with pytest.raises(ValueError, match="knows llama, gemma2"):
        FastDecoder(model)


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unsloths_kernels_are_called(architecture: Architecture) -> None:
    """On CUDA; here functions with the calling conventions of unsloth's kernels replace them."""
    from lmsys_unsloth.model.layers.gated_mlp import _gated_product, _gradients_of_product
    from lmsys_unsloth.model.layers.kernels import Kernels
    from lmsys_unsloth.model.layers.rope import apply_rope

    model, batch, calls = with_adapters(tiny_model(architecture)), labelled(), []
    expected = loss_and_gradients(FastDecoder(model), batch)
    activation = "gelu_pytorch_tanh" if architecture == "gemma2" else "silu"

    def rms_norm(module: Any, x: torch.Tensor, gemma: bool = False) -> torch.Tensor:
        assert gemma == (architecture == "gemma2")
        calls.append("norm")
        return module(x)

    def rope(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert q.shape[:3] == (1, 4, len(cos)) and k.shape[1] == 2
        calls.append("rope")
        q, k = apply_rope(*(x[0].transpose(0, 1) for x in (q, k)), (cos, sin), (cos, sin), None)
        return q.transpose(0, 1)[None], k.transpose(0, 1)[None]

    def forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        assert gate.dim() == up.dim() == 3 and gate.is_contiguous() and up.is_contiguous()
        calls.append("forward")
        return _gated_product(gate, up, activation, None)

    def backward(gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert gradient.dim() == gate.dim() == up.dim() == 2
        calls.append("backward")
        found = _gradients_of_product(gradient.clone(), gate, up, activation, None)
        for argument, value in zip((gradient, up, gate), found, strict=True):
            argument.data.copy_(value)  # unsloth overwrites its arguments
        return gradient, up, gate

    def dequantize(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("no weight is in 4 bits")

    gated: Any = {activation: (forward, backward)}
    found = loss_and_gradients(FastDecoder(model, Kernels(rms_norm, rope, dequantize, gated)), batch)
    assert_same(found, expected)
    # The last layer rotates queries at the slot only, in plain PyTorch.
    assert [calls.count(name) for name in ("rope", "forward", "backward")] == [3, 4, 4]
    assert calls.count("norm") == 4 * (4 if architecture == "gemma2" else 2) + 1


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_of_frozen_layers_are_computed_once_per_row(architecture: Any) -> None:
    model = with_adapters(tiny_model(architecture), **UPPER_HALF)
    rows, calls = random_rows(), []
    expected = probabilities(model, rows)
    decoder = FastDecoder(model)
    assert decoder.keep_frozen_states(tokens=1000, free_bytes=1e9)
    ordinary = decoder._layer
    decoder._layer = lambda index, *more, **named: calls.append(index) or ordinary(index, *more, **named)  # type: ignore[method-assign,func-returns-value]
    for _ in range(2):
        assert torch.equal(probabilities(model, rows, lambda _: decoder), expected)
    assert calls == [0, 1, 2, 3, 2, 3]
    again = probabilities(model, rows[::-1], lambda _: decoder).flip(0)  # in other batches too
    assert calls[6:] == [2, 3]
    torch.testing.assert_close(again, expected, atol=tolerance(), rtol=0)


def test_states_of_frozen_layers_are_not_kept_when_they_do_not_fit() -> None:
    frozen_below = FastDecoder(with_adapters(tiny_model("llama"), **UPPER_HALF))
    assert not frozen_below.keep_frozen_states(tokens=1000, free_bytes=1000 * 64 * 4 - 1)
    assert not FastDecoder(with_adapters(tiny_model("llama"))).keep_frozen_states(tokens=1, free_bytes=1e9)


def test_noise_is_added_to_embeddings_in_training_only() -> None:
    model, rows = with_adapters(tiny_model("llama")), random_rows()
    decoder = FastDecoder(model)
    expected = probabilities(model, rows)
    decoder.neftune_alpha = 5.0
    assert torch.equal(probabilities(model, rows, lambda _: decoder), expected)
    model.train()
    packed = torch.from_numpy(np.concatenate(rows)).long()
    layout = PackedRows(*[tuple(map(len, rows))] * 2, torch.device("cpu"))
    noise = decoder._embed(packed, layout) - model.get_input_embeddings()(packed)
    for row in torch.split(noise[0], list(layout.lengths)):
        most = 5.0 / math.sqrt(len(row) * 64)
        assert 0.9 * most < row.abs().max() <= most * (1 + 1e-5)
