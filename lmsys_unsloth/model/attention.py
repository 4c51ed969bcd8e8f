"""Causal attention over packed rows.

Four implementations of the same function; :func:`choose_attention` picks by device, dtype and model:

- :func:`row_by_row`: plain PyTorch for any device and model; the others are tested against it.
- :func:`grouped`: batched matrix products, for CPUs, bfloat16 and uncapped attention logits.
- :func:`varlen`: PyTorch's variable-length flash attention, for CUDA and uncapped attention logits.
- :func:`flex`: PyTorch's FlexAttention, for CUDA, with Gemma 2's logit cap and sliding window.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsys_unsloth.model import cpu_attention
from lmsys_unsloth.model.packing import MIN_POSITIONS, PackedRows, causal_mask

Attention = Callable[[Tensor, Tensor, Tensor, PackedRows, float, float | None, int | None], Tensor]
"""``attention(q, k, v, rows, scale, cap, window)`` → ``[queries, heads, head_dim]``.

Args:
    q: ``[queries, heads, head_dim]``.
    k, v: ``[n_tokens, key_value_heads, head_dim]``.
    rows: layout of the packed rows.
    scale: factor of the attention logits.
    cap: logits become ``cap * tanh(logits / cap)`` (Gemma 2, arXiv:2408.00118); None for no cap.
    window: each position attends to itself and the ``window - 1`` positions before it; None for no window.
"""


def choose_attention(rows: PackedRows, dtype: torch.dtype, cap: float | None) -> Attention:
    """Return the fastest implementation that supports the device, the dtype and the cap."""
    restricted = rows.query_lengths != rows.lengths  # few queries do not fill a kernel
    if rows.device.type == "cpu" and dtype == torch.bfloat16 and cap is None and not restricted:
        return grouped
    if restricted or dtype == torch.float32 or not has_flash_attention(rows.device):
        return row_by_row
    return varlen if cap is None else flex


@functools.cache
def has_flash_attention(device: torch.device) -> bool:
    """Whether PyTorch's flash attention runs on the device: an NVIDIA GPU from Ampere on (not a T4)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def row_by_row(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Attend within each row separately; supports restricted query positions."""
    by_head = (x.transpose(0, 1) for x in (q, k, v))
    sizes = (rows.query_lengths, rows.lengths, rows.lengths)
    parts = (torch.split(x, list(size), dim=1) for x, size in zip(by_head, sizes, strict=True))
    out = [_one_row(*part, scale, cap, window) for part in zip(*parts, strict=True)]  # type: ignore[call-arg]
    return torch.cat(out)


def _one_row(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, window: int | None) -> Tensor:
    """Attend from a row's last positions, ``q`` ``[heads, queries, head_dim]``, with heads last but one."""
    queries, tokens = q.shape[1], k.shape[1]
    window_cuts = window is not None and window < tokens
    if cap is not None:
        return _capped(q, k, v, scale, cap, causal_mask(queries, tokens, window, q.device))
    if queries == tokens and not window_cuts:
        options: dict[str, Any] = {"is_causal": True}
    elif queries == 1 and not window_cuts:
        options = {}
    else:
        options = {"attn_mask": causal_mask(queries, tokens, window, q.device)}
    if q.device.type == "cuda" and not has_flash_attention(q.device):
        # PyTorch's memory-efficient kernel takes no grouped heads; without it all logits would be stored.
        k, v = _repeat_heads(k, q), _repeat_heads(v, q)
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, enable_gqa=True, **options)
    return out[0].transpose(0, 1)


def _repeat_heads(x: Tensor, q: Tensor) -> Tensor:
    """Repeat ``[key_value_heads, tokens, head_dim]`` for the query heads that share each of them."""
    return x.repeat_interleave(len(q) // len(x), dim=0)


def _capped(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, mask: Tensor) -> Tensor:
    k, v = _repeat_heads(k, q), _repeat_heads(v, q)
    logits = cap * torch.tanh(q @ k.transpose(1, 2) * scale / cap)
    weights = logits.float().masked_fill(~mask, float("-inf")).softmax(dim=-1).to(q.dtype)
    return (weights @ v).transpose(0, 1)


def grouped(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Attend within groups of rows of similar length, without a cap; every position has a query."""
    if window is not None and window < max(rows.lengths):
        return row_by_row(q, k, v, rows, scale, cap, window)
    return cpu_attention.attend(q, k, v, rows.lengths, scale)


def varlen(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Attend with variable-length flash attention, without a cap; every position has a query."""
    if cap is not None:
        raise ValueError(f"attention logits capped at {cap}: varlen attention can't cap; use flex")
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters  # differ between torch 2.10 and 2.13
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None or window >= max(rows.lengths):
        options["is_causal"] = True
    else:
        return row_by_row(q, k, v, rows, scale, cap, window)
    if "scale" in known:
        options["scale"] = scale
    elif abs(scale * q.shape[-1] ** 0.5 - 1) > 1e-6:
        q = q * (scale * q.shape[-1] ** 0.5)
    if "enable_gqa" in known:  # versions without this option accept grouped heads as they are
        options["enable_gqa"] = True
    longest = max(rows.lengths)
    return cast(Tensor, varlen_attn(q, k, v, rows.offsets, rows.offsets, longest, longest, **options))


def flex(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Attend with FlexAttention, compiled on CUDA; every position has a query."""
    # A window that cuts no row is dropped, so that such layers share the mask of the layers without one.
    narrow = window if window is not None and window < max(rows.lengths) else None

    def apply_cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        # tanh(x) = 2 sigmoid(2x) - 1, which takes fewer instructions; off by at most cap * 1e-7 in float32.
        return cast(float, cap) * (2.0 * torch.sigmoid(score * (2.0 / cast(float, cap))) - 1.0)

    missing = max(0, MIN_POSITIONS - rows.n_tokens)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x for x in (q, k, v))
    out = _flex_attention(q.device.type)(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        score_mod=None if cap is None else apply_cap,
        block_mask=rows.block_mask(narrow),
        scale=scale,
        enable_gqa=True,
        kernel_options=_tile_sizes(q.device, q.shape[-1]),
    )
    return cast(Tensor, out)[0, :, : rows.n_tokens].transpose(0, 1)


@functools.cache
def _tile_sizes(device: torch.device, head_dim: int) -> dict[str, int] | None:
    """Tile sizes where PyTorch's are slow, or do not fit, for heads of width 256; None for PyTorch's own.

    - H100 and H200: PyTorch's four warps hold too many numbers each. With eight, the attention of a layer of
      Gemma 2 is 1.7 times as fast (``benchmarks/results``; the best of the sizes tried).
    - GPUs with little shared memory: PyTorch's need 149 KiB on an A100, which has 163. An RTX 3090, 4090 or
      5090 has 99 KiB; these sizes need 69 (compiled with torch 2.11, not run).
    """
    if device.type != "cuda":
        return None
    if torch.cuda.get_device_capability(device) == (9, 0) and head_dim > 128:
        return {
            "fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_stages": 2, "fwd_num_warps": 8,
            "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64,
            "bwd_num_stages": 2, "bwd_num_warps": 8,
        }  # fmt: skip
    gpu: Any = torch.cuda.get_device_properties(device)
    if gpu.shared_memory_per_block_optin > 160 * 1024:
        return None
    backward = dict.fromkeys(("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), 32)
    return {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_stages": 2, **backward, "bwd_num_stages": 2}


@functools.cache
def _flex_attention(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return compile_once(flex_attention) if device == "cuda" else cast(Callable[..., Any], flex_attention)


def compile_once(function: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
    """Apply ``torch.compile`` so that batches of all lengths share one compilation.

    With static shapes each length would be compiled anew. With dynamic ones PyTorch makes Python floats
    symbolic too, and FlexAttention's kernels can't be generated with a symbolic cap (torch 2.11, 2.13).
    """
    compiled = torch.compile(function, dynamic=True, backend=backend)

    @functools.wraps(function)
    def with_constant_floats(*args: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(specialize_float=True):
            return compiled(*args, **options)

    return with_constant_floats
