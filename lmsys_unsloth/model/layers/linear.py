"""Linear layers with or without LoRA; they keep inputs for the backward pass in the model's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
