"""The parts of a decoder layer, computed from the loaded model's own modules and adapters.

On CUDA unsloth's fused kernels compute them where they apply; else the same in plain PyTorch, written
to keep little for the backward pass: inputs in the model's own dtype, never float32 copies of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernels:
    """What unsloth brings on CUDA.

    Its fused LoRA functions need no entry here: unsloth hangs them on the layers that they suit
    (``self_attn.apply_qkv``, ``self_attn.apply_o``, ``mlp.forward``; see :func:`_fused`).
    """

    rms_norm: Callable[..., Tensor]
    """``fast_rms_layernorm(module, x, gemma=False)``."""


def _fused(owner: nn.Module, name: str) -> Any:
    """The fused LoRA function that unsloth put on a module in place of its own; None where it did not.

    It does so when it makes the adapters, not when they are loaded, and for float32 weights never.
    """
    function = vars(owner).get(name)
    return function if "apply_lora" in getattr(function, "__name__", "") else None


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` for a linear layer with or without LoRA; ``x`` is ``[..., inputs]``.

    PEFT multiplies in the adapters' float32 and keeps a float32 copy of ``x`` for it. Here the
    adapters are brought to the dtype of ``x``, as autocast would, and added in the matmul itself.
    """
    adapters = getattr(module, "lora_A", None)
    if adapters is None or getattr(module, "disable_adapters", False) or _unusual(module):
        return cast(Tensor, module(x))
    proj = cast(Any, module)
    y = cast(Tensor, proj.base_layer(x))
    for name in proj.active_adapters:
        if name in adapters:
            down = adapters[name].weight.to(x.dtype)
            up = proj.lora_B[name].weight.to(x.dtype)
            inner = F.linear(proj.lora_dropout[name](x), down)
            y = torch.addmm(
                y.reshape(-1, y.shape[-1]), inner.reshape(-1, inner.shape[-1]), up.T, alpha=proj.scaling[name]
            ).view(y.shape)
    return y


def _unusual(module: Any) -> bool:
    """Merged, DoRA or biased adapters: PEFT knows what they mean."""
    names = module.active_adapters
    dora = getattr(module, "use_dora", {})
    biased = any(
        getattr(module.lora_B[name], "bias", None) is not None for name in names if name in module.lora_B
    )
    return bool(module.merged) or biased or any(dora.get(name) for name in names)


def rms_norm(module: nn.Module, x: Tensor, *, gemma: bool, kernels: Kernels | None) -> Tensor:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467) over the last dimension.

    Llama multiplies by the weight after rounding to the dtype of ``x``; Gemma multiplies by one
    plus the weight, in float32.
    """
    if kernels is not None:
        return kernels.rms_norm(module, x, gemma=gemma)
    norm = cast(Any, module)
    epsilon = norm.eps if gemma else norm.variance_epsilon
    return cast(Tensor, _RmsNorm.apply(x, norm.weight, epsilon, gemma))  # type: ignore[no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    """Keeps ``x`` and one number a position; autograd would keep two float32 copies of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, gemma: bool) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(torch.linalg.vecdot(exact, exact)[..., None] / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, scale)
        ctx.weight, ctx.gemma = weight, gemma
        normed = exact * scale
        if gemma:
            return (normed * (1.0 + weight.float())).to(x.dtype)
        return weight * normed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale = ctx.saved_tensors
        weight = 1.0 + ctx.weight.float() if ctx.gemma else ctx.weight
        inner, exact = (gradient * weight).float(), x.float()
        along = torch.linalg.vecdot(inner, exact)[..., None] * scale.pow(3) / x.shape[-1]
        return (inner * scale).addcmul_(exact, along, value=-1).to(x.dtype), None, None, None


def queries_keys_values(attention: nn.Module, x: Tensor, kernels: Kernels | None) -> tuple[Tensor, ...]:
    """Projections ``[..., heads * head_dim]`` of ``x``, before rotation."""
    projections = cast(Any, attention)
    if kernels is not None and (fused := _fused(attention, "apply_qkv")):
        return cast(tuple[Tensor, ...], fused(attention, x))
    return tuple(linear(p, x) for p in (projections.q_proj, projections.k_proj, projections.v_proj))


def attention_output(attention: nn.Module, x: Tensor, kernels: Kernels | None) -> Tensor:
    """The output projection ``[..., width]`` of what the heads found."""
    if kernels is not None and (fused := _fused(attention, "apply_o")):
        return cast(Tensor, fused(attention, x))
    return linear(cast(Any, attention).o_proj, x)


def gated_mlp(mlp: nn.Module, x: Tensor, kernels: Kernels | None) -> Tensor:
    """``down(activation(gate(x)) * up(x))``."""
    if kernels is not None and (fused := _fused(mlp, "forward")):
        return cast(Tensor, fused(x))
    m = cast(Any, mlp)
    gate, up = linear(m.gate_proj, x), linear(m.up_proj, x)
    name = m.config.hidden_activation if hasattr(m.config, "hidden_activation") else m.config.hidden_act
    return linear(m.down_proj, cast(Tensor, _GatedProduct.apply(gate, up, name)))  # type: ignore[no-untyped-call]


class _GatedProduct(torch.autograd.Function):
    """``activation(gate) * up``; the activation is computed again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _activated(gate, activation) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        through = gradient * up
        if ctx.activation == "silu":
            d_gate = torch.ops.aten.silu_backward(through, gate)
        else:
            d_gate = torch.ops.aten.gelu_backward(through, gate, approximate="tanh")
        return d_gate, gradient * _activated(gate, ctx.activation), None


def _activated(gate: Tensor, activation: str) -> Tensor:
    match activation:
        case "silu":
            return F.silu(gate)
        case "gelu_pytorch_tanh":
            return F.gelu(gate, approximate="tanh")
    raise ValueError(f"activation {activation!r}: known are silu (Llama) and gelu_pytorch_tanh (Gemma 2)")


def rotary_table(config: Any, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[tokens, 1, head_dim / 2]`` of rotary embeddings (Su et al., arXiv:2104.09864).

    Computed here and not by the model's module, which unsloth replaces by another on CUDA.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        dimensions = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        steps = torch.arange(0, dimensions, 2, dtype=torch.float32) / dimensions
        frequencies, factor = 1.0 / rope["rope_theta"] ** steps, 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    angles = positions[:, None, None].float() * frequencies.to(positions.device)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotated(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """``x`` ``[tokens, heads, head_dim]`` turned by its positions; halves are paired, as in transformers."""
    return cast(Tensor, _Rotated.apply(x, *table))  # type: ignore[no-untyped-call]


class _Rotated(torch.autograd.Function):
    """A rotation, whose gradient is turned back; autograd would go through slices and a concatenation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.table = cos, sin
        return _Rotated.turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.table
        return _Rotated.turn(gradient, cos, -sin), None, None

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        low, high = out.chunk(2, dim=-1)
        torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=high).addcmul_(first, sin)
        return out
