"""The MLP of a decoder layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsys_unsloth.model.families.family import Family
from lmsys_unsloth.model.layers.kernels import Kernels
from lmsys_unsloth.model.layers.linear import LoraLinears, linear, linears, plain_lora


def gated_mlp(mlp: nn.Module, x: Tensor, family: Family, kernels: Kernels | None) -> Tensor:
    """Compute ``down(activation(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""
    m = cast(Any, mlp)
    activation = m.config.hidden_activation if hasattr(m.config, "hidden_activation") else m.config.hidden_act
    if (plain := _plain_parts(mlp, family, x.dtype, kernels)) is not None:
        first, down = plain
        return cast(Tensor, _GatedMlp.apply(x, first, down, activation, *first.adapters, *down.adapters))  # type: ignore[no-untyped-call]
    found = linears([getattr(mlp, name) for name in family.gate_up], x, kernels)
    gate, up = found if len(found) == 2 else found[0].chunk(2, dim=-1)
    return linear(m.down_proj, cast(Tensor, _GatedProduct.apply(gate, up, activation)), kernels)  # type: ignore[no-untyped-call]


def recomputes_product(mlp: nn.Module, family: Family, dtype: torch.dtype, kernels: Kernels | None) -> bool:
    """Whether the backward pass recomputes the product of gate and up, which is not kept then."""
    return _plain_parts(mlp, family, dtype, kernels) is not None


def _plain_parts(
    mlp: nn.Module, family: Family, dtype: torch.dtype, kernels: Kernels | None
) -> tuple[LoraLinears, LoraLinears] | None:
    """Gate and up, and down, if all of them have plain LoRA."""
    if len(family.gate_up) != 2:
        return None
    first = plain_lora([getattr(mlp, name) for name in family.gate_up], dtype, kernels)
    down = plain_lora([cast(Any, mlp).down_proj], dtype, kernels)
    return None if first is None or down is None else (first, down)


class _GatedMlp(torch.autograd.Function):
    """Keeps the input, gate and up; their product is recomputed for the gradients of the last adapters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: LoraLinears, down: LoraLinears, activation: str, *_: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        (gate, up), kept_first = first.forward(flat)
        (out,), kept_down = down.forward(_gated_product(gate, up, activation, first.kernels))
        ctx.save_for_backward(x, gate, up, *kept_first, *kept_down)
        ctx.first, ctx.down, ctx.activation, ctx.split = first, down, activation, len(kept_first)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, gate, up, *kept = ctx.saved_tensors
        kept_first, kept_down = kept[: ctx.split], kept[ctx.split :]
        flats = [gradient.reshape(-1, gradient.shape[-1])]
        d_product, d_inner = ctx.down.input_gradient(flats, kept_down)
        product, d_up, d_gate = _gradients_of_product(d_product, gate, up, ctx.activation, ctx.first.kernels)
        d_adapters = ctx.down.adapter_gradients(flats, product, kept_down, d_inner)
        both = [d_gate, d_up]
        d_x, d_inner = ctx.first.input_gradient(both, kept_first, needed=ctx.needs_input_grad[0])
        d_adapters = (
            ctx.first.adapter_gradients(both, x.reshape(-1, x.shape[-1]), kept_first, d_inner) + d_adapters
        )
        return None if d_x is None else d_x.view_as(x), None, None, None, *d_adapters


class _GatedProduct(torch.autograd.Function):
    """``activation(gate) * up``; the backward pass recomputes the activation instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _gated_product(gate, up, activation, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        _, d_up, d_gate = _gradients_of_product(gradient.clone(), gate, up, ctx.activation, None)
        return d_gate, d_up, None


def _gated_product(gate: Tensor, up: Tensor, activation: str, kernels: Kernels | None) -> Tensor:
    """Compute ``activation(gate) * up`` of ``[tokens, inner]``."""
    if kernels is not None and activation in kernels.gated:
        return kernels.gated[activation][0](gate[None], up[None])[0]
    return _activate(gate, activation).mul_(up)


def _gradients_of_product(
    gradient: Tensor, gate: Tensor, up: Tensor, activation: str, kernels: Kernels | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the product again, and the gradients of up and gate; may overwrite the arguments."""
    if kernels is not None and activation in kernels.gated:
        return kernels.gated[activation][1](gradient, gate, up)
    activated = _activate(gate, activation)
    product = activated * up
    d_up = activated.mul_(gradient)
    through = gradient.mul_(up)
    if activation == "silu":
        return product, d_up, torch.ops.aten.silu_backward(through, gate)
    return product, d_up, torch.ops.aten.gelu_backward(through, gate, approximate="tanh")


def _activate(gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return F.silu(gate)
    if activation == "gelu_pytorch_tanh":
        return F.gelu(gate, approximate="tanh")
    raise ValueError(f"activation {activation!r}: known are silu (Llama) and gelu_pytorch_tanh (Gemma)")
