"""The LM head in float32, for all or some entries of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.model.decoder import causal_lm


def head_logits(model: nn.Module, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
    """Compute the logits ``[..., ids]`` of vocabulary entries (None: all) from states ``[..., width]``.

    In float32, as neighbouring bfloat16 numbers between 16 and 32 are 0.125 apart, and capped as the model
    caps them.
    """
    logits = cast(Tensor, _Float32Head.apply(states, lm_head_rows(model, ids)))  # type: ignore[no-untyped-call]
    return cap_logits(model, logits)


def lm_head_rows(model: nn.Module, ids: Sequence[int] | None = None) -> Tensor:
    """Return the LM head's weight rows of vocabulary entries (None: all), ``[ids, width]``."""
    weight = cast(nn.Linear, causal_lm(model).get_output_embeddings()).weight  # type: ignore[operator]
    return weight if ids is None else torch.stack([weight[index] for index in ids])


def cap_logits(model: nn.Module, logits: Tensor) -> Tensor:
    """Apply Gemma 2's final cap, if the model has one: ``cap * tanh(logits / cap)`` (arXiv:2408.00118)."""
    cap = cast(float | None, getattr(causal_lm(model).config, "final_logit_softcapping", None))
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _Float32Head(torch.autograd.Function):
    """``states @ weight.T`` in float32 for a frozen weight in any dtype, without a float32 copy of all of it.

    A copy of Gemma 2's head would take 3.7 GB, and autograd would keep it for the backward pass.
    """

    ENTRIES = 16_384  # vocabulary entries that are cast to float32 at a time

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, states.dtype
        parts = torch.split(weight, _Float32Head.ENTRIES)
        return torch.cat([states.float() @ part.float().T for part in parts], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weights = torch.split(ctx.weight, _Float32Head.ENTRIES)
        columns = torch.split(gradient, _Float32Head.ENTRIES, dim=-1)
        total = torch.zeros(*gradient.shape[:-1], ctx.weight.shape[1], device=gradient.device)
        for part, weight in zip(columns, weights, strict=True):
            total += part @ weight.float()
        return total.to(ctx.dtype), None
