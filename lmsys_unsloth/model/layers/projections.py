"""The projections of an attention layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.model.families.family import Family
from lmsys_unsloth.model.layers.kernels import Kernels
from lmsys_unsloth.model.layers.linear import linear, linears


def project_qkv(
    attention: nn.Module, x: Tensor, family: Family, kernels: Kernels | None
) -> tuple[Tensor, ...]:
    """Compute queries, keys and values ``[..., heads * head_dim]``, before their norms and rotation."""
    found = linears([getattr(attention, name) for name in family.qkv], x, kernels)
    if len(found) > 1:
        return found
    config, head_dim = cast(Any, attention).config, cast(Any, attention).head_dim
    kv = config.num_key_value_heads * head_dim
    q, k, v = torch.split(found[0], [config.num_attention_heads * head_dim, kv, kv], dim=-1)
    return q, k, v.contiguous()  # q and k are rotated; a view of v would keep all three for the backward pass


def project_chosen(
    attention: nn.Module, x: Tensor, chosen: Tensor, family: Family, kernels: Kernels | None
) -> tuple[Tensor, ...]:
    """Compute queries at the ``chosen`` positions, and keys and values at all positions."""
    if len(family.qkv) == 1:
        q, k, v = project_qkv(attention, x, family, kernels)
        return q[:, chosen], k, v
    q_proj, *others = (getattr(attention, name) for name in family.qkv)
    return linear(q_proj, x[:, chosen], kernels), *linears(others, x, kernels)
