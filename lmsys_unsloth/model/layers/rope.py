"""Rotary position embeddings (Su et al., arXiv:2104.09864)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lmsys_unsloth.model.layers.kernels import Kernels

RopeTable = tuple[Tensor, Tensor]
"""Cosines and sines ``[tokens, 1, rotated / 2]``."""


def rope_kind(config: Any, layer: int) -> str | None:
    """Return the entry of ``config.rope_parameters`` for a layer; None if there is one for all layers."""
    return None if "rope_type" in config.rope_parameters else str(config.layer_types[layer])


def rope_frequencies(config: Any, kind: str | None = None) -> tuple[Tensor, float]:
    """Return angles per position, float32 ``[rotated / 2]``, and a factor of cosines and sines.

    Computed here and not by the model's module, which unsloth replaces on CUDA. Part of a head is rotated if
    the model's configuration says so (``partial_rotary_factor``).

    Raises:
        ValueError: the angles depend on the length of the row (``longrope``, ``dynamic``).
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters if kind is None else config.rope_parameters[kind]
    if rope["rope_type"] in ("longrope", "dynamic"):
        raise ValueError(f"rope_type {rope['rope_type']!r}: its angles depend on the length of the row")
    if rope["rope_type"] != "default":
        options = {} if kind is None else {"layer_type": kind}
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), **options)
        return frequencies, float(factor)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    return 1.0 / rope["rope_theta"] ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated), 1.0


def rope_table(frequencies: Tensor, factor: float, positions: Tensor, dtype: torch.dtype) -> RopeTable:
    """Compute cosines and sines for :func:`apply_rope` from what :func:`rope_frequencies` returns."""
    angles = positions[:, None, None].float() * frequencies
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def apply_rope(
    q: Tensor, k: Tensor, q_table: RopeTable, k_table: RopeTable, kernels: Kernels | None
) -> tuple[Tensor, Tensor]:
    """Rotate ``[tokens, heads, head_dim]`` by their positions, pairing halves as transformers does.

    With kernels ``q`` and ``k`` must have the same positions, and may be overwritten.
    """
    partial = 2 * k_table[0].shape[-1] < k.shape[-1]
    if kernels is None or partial:
        return _rotate_beginning(q, q_table), _rotate_beginning(k, k_table)
    q, k = kernels.rope(*(x[None].transpose(1, 2) for x in (q, k)), *k_table)
    return q.transpose(1, 2)[0], k.transpose(1, 2)[0]


def _rotate_beginning(x: Tensor, table: RopeTable) -> Tensor:
    """Rotate as many entries of each head as the table is for."""
    rotated = 2 * table[0].shape[-1]
    beginning = cast(Tensor, _Rope.apply(x[..., :rotated], *table))  # type: ignore[no-untyped-call]
    return beginning if rotated == x.shape[-1] else torch.cat([beginning, x[..., rotated:]], dim=-1)


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
