"""unsloth's CUDA kernels, as the fast decoder calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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
