"""The parts of a decoder layer, computed with the loaded model's own modules and adapters.

On CUDA unsloth's fused kernels compute them where they apply. Elsewhere plain PyTorch does, written to keep
little for the backward pass: inputs in the model's dtype, no float32 copies of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernels:
    """unsloth's CUDA kernels.

    Its fused LoRA functions have no entry: unsloth sets them on the layers that they support
    (``self_attn.apply_qkv``, ``self_attn.apply_o``, ``mlp.forward``; see :func:`fused_function`).
    """

    rms_norm: Callable[..., Tensor]
    """``fast_rms_layernorm(module, x, gemma=False)``."""
    rope: Callable[..., tuple[Tensor, Tensor]]
    """``fast_rope_embedding(q, k, cos, sin)``: rotates ``[1, heads, tokens, head_dim]``, in place."""


def fused_function(module: nn.Module, name: str) -> Any:
    """Return the fused LoRA function that unsloth set on ``module`` under ``name``, or None.

    unsloth sets it when adapters are created, not when they are loaded, and never for float32 weights.
    """
    function = vars(module).get(name)
    return function if "apply_lora" in getattr(function, "__name__", "") else None


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """Compute ``module(x)`` for a linear layer with or without LoRA; ``x`` is ``[..., inputs]``.

    PEFT multiplies in the adapters' float32 and keeps a float32 copy of ``x``. Here the adapters are cast to
    the dtype of ``x``, as autocast would, and added within the matrix product.
    """
    adapters = getattr(module, "lora_A", None)
    if adapters is None and (weight := cast(Tensor, module.weight)).requires_grad:
        return F.linear(x, weight.to(x.dtype), cast(Any, module).bias)  # trained in float32
    if adapters is None or getattr(module, "disable_adapters", False) or _is_special(module):
        return cast(Tensor, module(x))
    if _is_plain(module, x.dtype):
        return _linears_with_lora([module], x)[0]
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


def _is_special(module: Any) -> bool:
    """Whether the adapters are merged, DoRA or biased, which is left to PEFT."""
    names = [name for name in module.active_adapters if name in module.lora_B]
    biased = any(getattr(module.lora_B[name], "bias", None) is not None for name in names)
    return bool(module.merged) or biased or any(getattr(module, "use_dora", {}).get(name) for name in names)


def linears(modules: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """Compute :func:`linear` of several modules with the same input; together where all have plain LoRA."""
    if all(_is_plain(module, x.dtype) for module in modules):
        return _linears_with_lora(modules, x)
    return tuple(linear(module, x) for module in modules)


def _is_plain(module: Any, dtype: torch.dtype) -> bool:
    """Whether the layer has one adapter without dropout, on a frozen matrix in ``dtype`` without a bias."""
    if not hasattr(module, "lora_A") or module.disable_adapters or _is_special(module):
        return False
    names, base = [name for name in module.active_adapters if name in module.lora_A], module.base_layer
    frozen = type(base) is nn.Linear and base.bias is None and not base.weight.requires_grad
    return (
        len(names) == 1 and frozen and base.weight.dtype == dtype
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
    )  # fmt: skip


def _linears_with_lora(modules: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    names = [next(name for name in module.active_adapters if name in module.lora_A) for module in modules]
    named = list(zip(modules, names, strict=True))
    weights = [module.base_layer.weight for module in modules]
    scales = [module.scaling[name] for module, name in named]
    downs = [module.lora_A[name].weight for module, name in named]
    ups = [module.lora_B[name].weight for module, name in named]
    return cast(tuple[Tensor, ...], _LinearsWithLora.apply(x, weights, scales, *downs, *ups))  # type: ignore[no-untyped-call]


class _LinearsWithLora(torch.autograd.Function):
    """``x Wᵀ + s (x Aᵀ) Bᵀ`` for several W, A and B: one product with all A, results added up in place.

    Autograd would copy each ``x Wᵀ`` and add up the gradients of ``x`` one by one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: list[Tensor], scales: list[float], *adapters: Tensor
    ) -> tuple[Tensor, ...]:
        downs, ups = adapters[: len(weights)], [up.to(x.dtype) for up in adapters[len(weights) :]]
        down = torch.cat([part.to(x.dtype) for part in downs])
        ctx.weights, ctx.scales, ctx.ranks = weights, scales, [len(part) for part in downs]
        ctx.dtypes = [adapter.dtype for adapter in adapters]
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ down.T
        ctx.save_for_backward(x, inner, down, *ups)
        parts = zip(weights, scales, torch.split(inner, ctx.ranks, dim=1), ups, strict=True)
        outs = [(flat @ weight.T).addmm_(part, up.T, alpha=scale) for weight, scale, part, up in parts]
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """With gradient G of a result: dx = G W + s (G B) A, dA = s (G B)ᵀ x, dB = s Gᵀ (x Aᵀ)."""
        x, inner, down, *ups = ctx.saved_tensors
        flats = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        parts = zip(flats, ups, ctx.scales, strict=True)
        d_inner = torch.cat([(flat @ up).mul_(scale) for flat, up, scale in parts], dim=1)
        d_down = torch.split(d_inner.T @ x.reshape(-1, x.shape[-1]), ctx.ranks)
        inners = torch.split(inner, ctx.ranks, dim=1)
        d_ups = [(flat.T @ part).mul_(s) for flat, part, s in zip(flats, inners, ctx.scales, strict=True)]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = d_inner @ down
            for flat, weight in zip(flats, ctx.weights, strict=True):
                d_x.addmm_(flat, weight)
            d_x = d_x.view_as(x)
        d_adapters = zip((*d_down, *d_ups), ctx.dtypes, strict=True)
        return d_x, None, None, *(gradient.to(dtype) for gradient, dtype in d_adapters)


def rms_norm(module: nn.Module, x: Tensor, *, gemma: bool, kernels: Kernels | None) -> Tensor:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467) over the last dimension.

    Llama multiplies by the weight after rounding to the dtype of ``x``; Gemma multiplies by one plus the
    weight, in float32.
    """
    if kernels is not None:
        return kernels.rms_norm(module, x, gemma=gemma)
    norm = cast(Any, module)
    epsilon = norm.eps if gemma else norm.variance_epsilon
    return cast(Tensor, _RmsNorm.apply(x, norm.weight, epsilon, gemma))  # type: ignore[no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    """Keeps ``x`` and one number per position; autograd would keep two float32 copies of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, gemma: bool) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(torch.linalg.vecdot(exact, exact)[..., None] / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, scale)
        ctx.weight, ctx.gemma = weight, gemma
        normed = exact * scale if exact is x else exact.mul_(scale)  # a float32 x is no copy
        if gemma:
            return (normed * (1.0 + weight.float())).to(x.dtype)
        return weight * normed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """With s = 1 / rms(x) and g = gradient * weight: dx = s * g - x * s³ * mean(g * x)."""
        x, scale = ctx.saved_tensors
        weight = 1.0 + ctx.weight.float() if ctx.gemma else ctx.weight
        weighted, exact = (gradient * weight).float(), x.float()
        along_x = torch.linalg.vecdot(weighted, exact)[..., None] * scale.pow(3) / x.shape[-1]
        return (weighted * scale).addcmul_(exact, along_x, value=-1).to(x.dtype), None, None, None


def project_qkv(attention: nn.Module, x: Tensor, kernels: Kernels | None) -> tuple[Tensor, ...]:
    """Compute queries, keys and values ``[..., heads * head_dim]``, before the rotary embedding."""
    if kernels is not None and (fused := fused_function(attention, "apply_qkv")):
        return cast(tuple[Tensor, ...], fused(attention, x))
    a = cast(Any, attention)
    return linears((a.q_proj, a.k_proj, a.v_proj), x)


def project_output(attention: nn.Module, x: Tensor, kernels: Kernels | None) -> Tensor:
    """Compute the output projection ``[..., width]`` of the heads' results."""
    if kernels is not None and (fused := fused_function(attention, "apply_o")):
        return cast(Tensor, fused(attention, x))
    return linear(cast(Any, attention).o_proj, x)


def gated_mlp(mlp: nn.Module, x: Tensor, kernels: Kernels | None) -> Tensor:
    """Compute ``down(activation(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""
    if kernels is not None and (fused := fused_function(mlp, "forward")):
        return cast(Tensor, fused(x))
    m = cast(Any, mlp)
    gate, up = linears((m.gate_proj, m.up_proj), x)
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
    raise ValueError(f"activation {activation!r}: known are silu (Llama) and gelu_pytorch_tanh (Gemma 2)")


def rope_frequencies(config: Any) -> tuple[Tensor, float]:
    """Angles per position ``[head_dim / 2]`` of rotary embeddings (Su et al., arXiv:2104.09864).

    Cosines and sines are multiplied by the factor that is returned too. Computed here and not by the model's
    module, which unsloth replaces on CUDA.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / rope["rope_theta"] ** exponents, 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    return frequencies, float(factor)


def rope_table(
    frequencies: Tensor, factor: float, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[tokens, 1, head_dim / 2]`` for :func:`apply_rope`."""
    angles = positions[:, None, None].float() * frequencies
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def apply_rope(
    q: Tensor, k: Tensor, q_table: tuple[Tensor, Tensor], k_table: tuple[Tensor, Tensor],
    kernels: Kernels | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rotate ``[tokens, heads, head_dim]`` by their positions, pairing halves as transformers does.

    With kernels ``q`` and ``k`` must have the same positions, and may be overwritten.
    """
    if kernels is None:
        return cast(
            tuple[Tensor, Tensor],
            tuple(_Rope.apply(x, *table) for x, table in ((q, q_table), (k, k_table))),  # type: ignore[no-untyped-call]
        )
    q, k = kernels.rope(*(x[None].transpose(1, 2) for x in (q, k)), *k_table)
    return q.transpose(1, 2)[0], k.transpose(1, 2)[0]


class _Rope(torch.autograd.Function):
    """The gradient of a rotation is the opposite rotation; autograd would keep slices and a concatenation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.table = cos.to(x.dtype), sin.to(x.dtype)
        return _Rope.rotate(x, *ctx.table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.table
        return _Rope.rotate(gradient, cos, -sin), None, None

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        low, high = out.chunk(2, dim=-1)
        torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=high).addcmul_(first, sin)
        return out
