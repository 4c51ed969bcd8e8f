"""The parts of a decoder layer that are made of linear layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsys_unsloth.model.families.family import Family
from lmsys_unsloth.model.layers.kernels import Kernels, fused_function
from lmsys_unsloth.model.layers.linear import linear, linears


def project_qkv(
    attention: nn.Module, x: Tensor, family: Family, kernels: Kernels | None
) -> tuple[Tensor, ...]:
    """Compute queries, keys and values ``[..., heads * head_dim]``, before their norms and rotation."""
    if kernels is not None and (fused := fused_function(attention, "apply_qkv")):
        return cast(tuple[Tensor, ...], fused(attention, x))
    found = linears([getattr(attention, name) for name in family.qkv], x)
    if len(found) > 1:
        return found
    config, head_dim = cast(Any, attention).config, cast(Any, attention).head_dim
    kv = config.num_key_value_heads * head_dim
    q, k, v = torch.split(found[0], [config.num_attention_heads * head_dim, kv, kv], dim=-1)
    return q, k, v.contiguous()  # q and k are rotated; a view of v would keep all three for the backward pass


def project_output(attention: nn.Module, x: Tensor, kernels: Kernels | None) -> Tensor:
    """Compute the output projection ``[..., width]`` of the heads' results."""
    if kernels is not None and (fused := fused_function(attention, "apply_o")):
        return cast(Tensor, fused(attention, x))
    return linear(cast(Any, attention).o_proj, x)


def gated_mlp(mlp: nn.Module, x: Tensor, family: Family, kernels: Kernels | None) -> Tensor:
    """Compute ``down(activation(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""
    if kernels is not None and (fused := fused_function(mlp, "forward")):
        return cast(Tensor, fused(x))
    found, m = linears([getattr(mlp, name) for name in family.gate_up], x), cast(Any, mlp)
    gate, up = found if len(found) == 2 else found[0].chunk(2, dim=-1)
    name = m.config.hidden_activation if hasattr(m.config, "hidden_activation") else m.config.hidden_act
    return linear(m.down_proj, cast(Tensor, _GatedProduct.apply(gate, up, name)))  # type: ignore[no-untyped-call]


class _GatedProduct(torch.autograd.Function):
    """``activation(gate) * up``; the backward pass recomputes the activation instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        through = gradient * up
        if ctx.activation == "silu":
            d_gate = torch.ops.aten.silu_backward(through, gate)
        else:
            d_gate = torch.ops.aten.gelu_backward(through, gate, approximate="tanh")
        return d_gate, _activate(gate, ctx.activation).mul_(gradient), None


def _activate(gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return F.silu(gate)
    if activation == "gelu_pytorch_tanh":
        return F.gelu(gate, approximate="tanh")
    raise ValueError(f"activation {activation!r}: known are silu (Llama) and gelu_pytorch_tanh (Gemma)")
