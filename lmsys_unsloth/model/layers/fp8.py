"""Products with frozen weights in 8-bit floating point, forward and backward.

Both factors are rounded to E4M3 (arXiv:2209.05433), activations and gradients with a scale for each token,
weights with one for each output, and multiplied by the GPU's tensor cores for 8-bit numbers. Without such a
GPU the same numbers are multiplied in float32, which shows what fp8 would give, but is slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Largest number of E4M3."""

SMALLEST_SCALE = 2.0**-100
"""Scale of a row of zeros."""

MULTIPLE = 16
"""Sizes of weights must be multiples of this for ``torch._scaled_mm``."""

CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with tensor cores for E4M3 (Ada; Hopper is 9.0)."""


class Scaled(NamedTuple):
    """A matrix ``values * scales``."""

    values: Tensor
    """E4M3 ``[rows, columns]``."""
    scales: Tensor
    """float32 ``[rows, 1]``."""


@dataclass(frozen=True)
class Fp8Weight:
    """A frozen W ``[outputs, inputs]``."""

    forward: Scaled
    """W."""
    backward: Scaled | None
    """Wᵀ, which is scaled for each input; None where no gradients are computed."""


def is_supported() -> bool:
    """Whether the GPU multiplies E4M3, or there is no GPU."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= CAPABILITY


def quantize_rows(x: Tensor) -> Scaled:
    """Round ``x`` ``[rows, columns]`` to E4M3 with the scale that makes a row's largest number 448."""
    if x.is_cuda:
        from lmsys_unsloth.model.layers import fp8_kernel

        return Scaled(*fp8_kernel.quantize_rows(x, E4M3, LARGEST, SMALLEST_SCALE))
    wide = x.float()
    scales = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_(min=SMALLEST_SCALE)
    return Scaled((wide / scales).clamp_(-LARGEST, LARGEST).to(E4M3), scales)


def product(a: Scaled, b: Scaled, dtype: torch.dtype) -> Tensor:
    """Compute ``a @ b.T``, ``[rows of a, rows of b]`` in ``dtype``."""
    if a.values.is_cuda:
        return torch._scaled_mm(
            a.values, b.values.T, scale_a=a.scales, scale_b=b.scales.T, out_dtype=dtype, use_fast_accum=True
        )
    return ((a.values.float() @ b.values.float().T) * a.scales * b.scales.T).to(dtype)


def weight_of(module: nn.Module) -> Fp8Weight | None:
    """Return the module's weight in fp8, if products with it are to be computed so."""
    return cast("Fp8Weight | None", getattr(module, "fp8_weight", None))


def frozen_linear(module: nn.Module, x: Tensor) -> Tensor:
    """Compute a frozen linear layer without adapters, ``[..., outputs]`` of ``x`` ``[..., inputs]``."""
    weight = weight_of(module)
    if weight is None:
        return cast(Tensor, module(x))
    y = cast(Tensor, _FrozenLinear.apply(x, weight))  # type: ignore[no-untyped-call]
    bias = cast("Tensor | None", cast(Any, module).bias)
    return y if bias is None else y + bias


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Fp8Weight) -> Tensor:
        ctx.weight = weight
        flat = product(quantize_rows(x.reshape(-1, x.shape[-1])), weight.forward, x.dtype)
        return flat.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        flat = gradient.reshape(-1, gradient.shape[-1])
        d_x = product(quantize_rows(flat), ctx.weight.backward, gradient.dtype)
        return d_x.view(*gradient.shape[:-1], -1), None


def attach(layers: Iterable[nn.Module], *, backward: bool) -> None:
    """Give the frozen linear layers within ``layers`` a copy of their weights in fp8.

    The weights themselves, in 4 or 16 bits, stay. ``backward`` says whether gradients will be computed.

    Raises:
        ValueError: a size of a weight is no multiple of :data:`MULTIPLE`.
    """
    for layer in layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and not module.weight.requires_grad and "lora_" not in name:
                sizes = module.out_features, module.in_features
                if any(size % MULTIPLE for size in sizes):
                    raise ValueError(
                        f"fp8 needs sizes of weights that are multiples of {MULTIPLE}, not {sizes}"
                    )
                values = _values(module)
                weight = Fp8Weight(
                    quantize_rows(values), quantize_rows(values.T.contiguous()) if backward else None
                )
                cast(Any, module).fp8_weight = weight


def detach(layers: Iterable[nn.Module]) -> None:
    """Remove what :func:`attach` has added."""
    for layer in layers:
        for module in layer.modules():
            if weight_of(module) is not None:
                del module.fp8_weight


def _values(module: nn.Linear) -> Tensor:
    """The weight ``[outputs, inputs]``, dequantised if it is in 4 bits."""
    state = getattr(module.weight, "quant_state", None)
    if state is None:
        return module.weight.data
    import bitsandbytes as bnb

    return bnb.functional.dequantize_4bit(module.weight.data, state)
