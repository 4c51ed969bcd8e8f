"""Root mean square norms."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.model.families.family import NormWeight
from lmsys_unsloth.model.layers.kernels import Kernels


def rms_norm(module: nn.Module, x: Tensor, weight: NormWeight, kernels: Kernels | None) -> Tensor:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467) over the last dimension.

    ``weight`` says how the module's weight is applied.
    """
    if kernels is not None:
        return kernels.rms_norm(module, x, gemma=weight == "one_plus")
    norm = cast(Any, module)
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return cast(Tensor, _RmsNorm.apply(x, norm.weight, epsilon, weight))  # type: ignore[no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    """Keeps ``x`` and one number per position; autograd would keep two float32 copies of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, kind: NormWeight) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(torch.linalg.vecdot(exact, exact)[..., None] / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, scale)
        ctx.weight, ctx.kind = weight, kind
        normed = exact * scale if exact is x else exact.mul_(scale)  # a float32 x is no copy
        if kind == "after_rounding":
            return weight * normed.to(x.dtype)
        return (normed * _factor(weight, kind)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """With s = 1 / rms(x) and g = gradient * weight: dx = s * g - x * s³ * mean(g * x)."""
        x, scale = ctx.saved_tensors
        weighted, exact = (gradient * _factor(ctx.weight, ctx.kind)).float(), x.float()
        along_x = torch.linalg.vecdot(weighted, exact)[..., None] * scale.pow(3) / x.shape[-1]
        return (weighted * scale).addcmul_(exact, along_x, value=-1).to(x.dtype), None, None, None


def _factor(weight: Tensor, kind: NormWeight) -> Tensor:
    """What the normed input is multiplied by."""
    if kind == "after_rounding":
        return weight
    return 1.0 + weight.float() if kind == "one_plus" else weight.float()
