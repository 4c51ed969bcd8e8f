"""Linear layers with or without LoRA; they keep inputs for the backward pass in the model's dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsys_unsloth.model.layers import fp8
from lmsys_unsloth.model.layers.kernels import Kernels


def linear(module: nn.Module, x: Tensor, kernels: Kernels | None = None) -> Tensor:
    """Compute ``module(x)`` for a linear layer with or without LoRA; ``x`` is ``[..., inputs]``.

    PEFT multiplies in the adapters' float32 and keeps a float32 copy of ``x``. Here the adapters are cast to
    the dtype of ``x``, as autocast would, and added within the matrix product.
    """
    adapters = getattr(module, "lora_A", None)
    if adapters is None and (weight := cast(Tensor, module.weight)).requires_grad:
        return F.linear(x, weight.to(x.dtype), cast(Any, module).bias)  # trained in float32
    if adapters is None:
        return fp8.frozen_linear(module, x)
    if getattr(module, "disable_adapters", False) or _is_special(module):
        return cast(Tensor, module(x))
    if (plain := plain_lora([module], x.dtype, kernels)) is not None:
        return plain(x)[0]
    proj = cast(Any, module)
    y = fp8.frozen_linear(proj.base_layer, x)
    for name in proj.active_adapters:
        if name in adapters:
            down = adapters[name].weight.to(x.dtype)
            up = proj.lora_B[name].weight.to(x.dtype)
            inner = F.linear(proj.lora_dropout[name](x), down)
            y = torch.addmm(
                y.reshape(-1, y.shape[-1]), inner.reshape(-1, inner.shape[-1]), up.T, alpha=proj.scaling[name]
            ).view(y.shape)
    return y


def linears(modules: Sequence[nn.Module], x: Tensor, kernels: Kernels | None = None) -> tuple[Tensor, ...]:
    """Compute :func:`linear` of several modules with the same input; together where all have plain LoRA."""
    if (plain := plain_lora(modules, x.dtype, kernels)) is not None:
        return plain(x)
    return tuple(linear(module, x, kernels) for module in modules)


def _is_special(module: Any) -> bool:
    """Whether the adapters are merged, DoRA or biased, which is left to PEFT."""
    names = [name for name in module.active_adapters if name in module.lora_B]
    biased = any(getattr(module.lora_B[name], "bias", None) is not None for name in names)
    return bool(module.merged) or biased or any(getattr(module, "use_dora", {}).get(name) for name in names)


def _is_plain(module: Any, dtype: torch.dtype, kernels: Kernels | None) -> bool:
    """Whether the layer has one adapter without dropout, on a frozen matrix in ``dtype`` without a bias.

    Matrices in fp8, and where there are kernels those in 4 bits, count as ones in the dtype of their results.
    """
    if not hasattr(module, "lora_A") or module.disable_adapters or _is_special(module):
        return False
    names, base = [name for name in module.active_adapters if name in module.lora_A], module.base_layer
    if len(names) != 1 or not isinstance(module.lora_dropout[names[0]], nn.Identity):
        return False
    if not isinstance(base, nn.Linear) or base.bias is not None or base.weight.requires_grad:
        return False
    if fp8.weight_of(base) is not None:
        return True
    state = getattr(base.weight, "quant_state", None)
    if state is not None:
        return kernels is not None and state.dtype == dtype
    return type(base) is nn.Linear and base.weight.dtype == dtype


@dataclass(frozen=True)
class LoraLinears:
    """``x Wᵀ + s (x Aᵀ) Bᵀ`` for several frozen W with the same input, and its gradients.

    One product computes ``x Aᵀ`` for all A. The methods work on ``[tokens, …]`` and outside autograd.
    """

    bases: list[nn.Linear]
    scales: list[float]
    adapters: tuple[Tensor, ...]
    """Trained A of every W, then trained B of every W."""
    kernels: Kernels | None

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the results ``[..., outputs]`` of ``x`` ``[..., inputs]`` within autograd."""
        return cast(tuple[Tensor, ...], _LoraLinears.apply(x, self, *self.adapters))  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results, and what the gradients need beside ``x``."""
        count = len(self.bases)
        down = torch.cat([part.to(x.dtype) for part in self.adapters[:count]])
        ups = [up.to(x.dtype) for up in self.adapters[count:]]
        inner = x @ down.T
        parts = zip(self._products(x), torch.split(inner, self._ranks, dim=1), ups, self.scales, strict=True)
        outs = [out.addmm_(part, up.T, alpha=scale) for out, part, up, scale in parts]
        return outs, [inner, down, *ups]

    def _products(self, x: Tensor) -> Iterator[Tensor]:
        """Compute ``x Wᵀ`` for every W."""
        weights = [fp8.weight_of(base) for base in self.bases]
        quantized = fp8.quantize_rows(x) if any(weights) else None
        for base, weight in zip(self.bases, weights, strict=True):
            if weight is None or quantized is None:
                yield x @ self._weight(base).T
            else:
                yield fp8.product(quantized, weight.forward, x.dtype)

    def input_gradient(
        self, gradients: Sequence[Tensor], kept: Sequence[Tensor], *, needed: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Return dx = Σ G W + s (G B) A if needed, and s G B of all adapters ``[tokens, ranks]``."""
        _, down, *ups = kept
        parts = zip(gradients, ups, self.scales, strict=True)
        d_inner = torch.cat([(gradient @ up).mul_(scale) for gradient, up, scale in parts], dim=1)
        if not needed:
            return None, d_inner
        d_x = d_inner @ down
        for gradient, base in zip(gradients, self.bases, strict=True):
            weight = fp8.weight_of(base)
            if weight is None:
                d_x.addmm_(gradient, self._weight(base))
            else:
                assert weight.backward is not None
                d_x += fp8.product(fp8.quantize_rows(gradient), weight.backward, d_x.dtype)
        return d_x, d_inner

    def adapter_gradients(
        self, gradients: Sequence[Tensor], x: Tensor, kept: Sequence[Tensor], d_inner: Tensor
    ) -> list[Tensor]:
        """Return dA = s (G B)ᵀ x of every W, then dB = s Gᵀ (x Aᵀ), as ``adapters`` are ordered."""
        inners = torch.split(kept[0], self._ranks, dim=1)
        d_downs = torch.split(d_inner.T @ x, self._ranks)
        d_ups = [(g.T @ part).mul_(s) for g, part, s in zip(gradients, inners, self.scales, strict=True)]
        found = zip((*d_downs, *d_ups), self.adapters, strict=True)
        return [gradient.to(adapter.dtype) for gradient, adapter in found]

    @property
    def _ranks(self) -> list[int]:
        return [len(down) for down in self.adapters[: len(self.bases)]]

    def _weight(self, base: nn.Linear) -> Tensor:
        """The frozen W ``[outputs, inputs]``; one in 4 bits is dequantised, into a buffer shared by all."""
        state = getattr(base.weight, "quant_state", None)
        if state is None:
            return base.weight
        return cast(Kernels, self.kernels).dequantize(base.weight, state, use_global_buffer=True)


def plain_lora(modules: Sequence[Any], dtype: torch.dtype, kernels: Kernels | None) -> LoraLinears | None:
    """Return the modules' matrices and adapters if all are plain: see :func:`_is_plain`."""
    if not all(_is_plain(module, dtype, kernels) for module in modules):
        return None
    names = [next(name for name in module.active_adapters if name in module.lora_A) for module in modules]
    named = list(zip(modules, names, strict=True))
    adapters = [
        kind[name].weight for part in ("lora_A", "lora_B") for m, name in named for kind in [getattr(m, part)]
    ]
    return LoraLinears(
        [module.base_layer for module in modules],
        [m.scaling[name] for m, name in named],
        tuple(adapters),
        kernels,
    )


class _LoraLinears(torch.autograd.Function):
    """Autograd would copy each ``x Wᵀ`` and add up the gradients of ``x`` one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: LoraLinears, *_: Tensor) -> tuple[Tensor, ...]:
        outs, kept = layers.forward(x.reshape(-1, x.shape[-1]))
        ctx.save_for_backward(x, *kept)
        ctx.layers = layers
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, *kept = ctx.saved_tensors
        flats = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        d_x, d_inner = ctx.layers.input_gradient(flats, kept, needed=ctx.needs_input_grad[0])
        d_adapters = ctx.layers.adapter_gradients(flats, x.reshape(-1, x.shape[-1]), kept, d_inner)
        return None if d_x is None else d_x.view_as(x), None, *d_adapters
