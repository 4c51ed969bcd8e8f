"""unsloth's CUDA kernels, as the fast decoder calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """unsloth's CUDA kernels.

    Its fused LoRA functions are not among them: they read the same input for each projection, and with them a
    training step of Llama 3 8B takes 5% longer than with :mod:`~lmsys_unsloth.model.layers.linear` (H100).
    """

    rms_norm: Callable[..., Tensor]
    """``rms_norm(module, x, gemma=False)``."""
    rope: Callable[..., tuple[Tensor, Tensor]]
    """``rope(q, k, cos, sin)``: rotates ``[1, heads, tokens, head_dim]``, in place."""
    dequantize: Callable[..., Tensor]
    """``dequantize(weight, quant_state, use_global_buffer=True)`` → ``[outputs, inputs]``, valid until called
    again."""
    gated: Mapping[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]]
    """Gated products by activation: ``forward(gate, up)`` of ``[1, tokens, inner]``, and ``backward(gradient,
    gate, up)`` of ``[tokens, inner]``, which overwrites its arguments with ``product, d_up, d_gate``."""


def unsloths_kernels() -> Kernels:
    """Return unsloth's kernels; unsloth must have been imported."""
    from unsloth.kernels import fast_rms_layernorm, fast_rope_embedding, utils
    from unsloth.kernels.geglu import geglu_approx_backward_kernel, geglu_approx_forward_kernel
    from unsloth.kernels.swiglu import swiglu_DWf_DW_dfg_kernel, swiglu_fg_kernel

    gated: dict[str, Any] = {
        "silu": (swiglu_fg_kernel, swiglu_DWf_DW_dfg_kernel),
        "gelu_pytorch_tanh": (geglu_approx_forward_kernel, geglu_approx_backward_kernel),
    }
    return Kernels(fast_rms_layernorm, fast_rope_embedding, utils.fast_dequantize, gated)
