"""Causal attention over rows that lie one behind the other, without padding.

One meaning, three ways to compute it, chosen by what the device and the model allow:

- :func:`row_by_row`: plain PyTorch, any device, any model; the reference for the other two.
- :func:`varlen`: PyTorch's variable-length flash attention; CUDA, models without a cap on attention logits.
- :func:`flex`: PyTorch's FlexAttention; CUDA, with Gemma 2's cap and sliding window.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PackedRows:
    """Where each row lies among ``tokens`` packed positions, and how many of its last positions ask.

    ``queries`` is ``lengths`` when every position attends, and the number of answer positions in the
    last layer, whose other outputs nobody reads.
    """

    lengths: tuple[int, ...]
    queries: tuple[int, ...]
    device: torch.device
    _masks: dict[int | None, Any] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def tokens(self) -> int:
        return sum(self.lengths)

    @functools.cached_property
    def positions(self) -> Tensor:
        """int64 ``[tokens]``: each token's place in its own row."""
        return torch.arange(self.tokens, device=self.device) - self.bounds[self.rows]

    @functools.cached_property
    def rows(self) -> Tensor:
        """int64 ``[tokens]``: the row each token belongs to."""
        sizes = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(sizes, output_size=self.tokens)  # told, it need not ask the device

    @functools.cached_property
    def bounds(self) -> Tensor:
        """int32 ``[rows + 1]``: where rows begin, and the end of the last one."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32, device=self.device)
        return ends.cumsum(0, dtype=torch.int32)

    def last(self, count: int) -> tuple[Tensor, PackedRows]:
        """Packed indices ``[rows * count]`` of the rows' last positions, and a layout where only they ask."""
        ends = torch.tensor(self.lengths, device=self.device).cumsum(0)
        index = (ends[:, None] - torch.arange(count, 0, -1, device=self.device)).reshape(-1)
        return index, PackedRows(self.lengths, (count,) * len(self.lengths), self.device)

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's mask of what each position may see, made once for all layers of a kind.

        Positions from ``tokens`` up to :data:`LEAST` are one more row: a short batch is padded to it.
        """
        if window not in self._masks:
            padding = max(0, LEAST - self.tokens)
            self._masks[window] = _block_mask(F.pad(self.rows, (0, padding), value=len(self.lengths)), window)
        return self._masks[window]


BLOCK = 128
"""Positions in a block of FlexAttention's mask."""

LEAST = 3 * BLOCK
"""Positions that FlexAttention gets at least. For fewer than 128 PyTorch takes another kernel, for which it
may find no settings (torch 2.11, Gemma 2's heads); and what it compiles for one block, or for as many
positions as a head is wide (256), it compiles for that size alone."""


def _block_mask(rows: Tensor, window: int | None) -> Any:
    """FlexAttention's mask from each position's row, int64 ``[positions]``, ascending.

    Made block by block: PyTorch's own way looks at every pair of positions, 8 bytes each with a window.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (rows[query] == rows[key]) & (key <= query)
        return seen if window is None else seen & (query - key < window)

    size = len(rows)
    reach = size if window is None else window
    first = torch.arange(0, size, BLOCK, device=rows.device)
    last = (first + BLOCK - 1).clamp(max=size - 1)
    q_first, q_last = first[:, None], last[:, None]
    some = (first <= q_first) & (rows[last] >= rows[q_first]) & (q_first - last < reach)
    every = (last < q_first) & (rows[first] == rows[q_last]) & (q_last - first < reach)
    every &= q_first + BLOCK <= size  # as PyTorch has it: queries beyond the end see nothing

    def lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """How many key blocks each query block needs, and their numbers, needed ones first."""
        numbers = chosen.int().argsort(dim=-1, descending=True, stable=True)
        return chosen.sum(-1, dtype=torch.int32)[None, None], numbers.int()[None, None]

    sizes = (size, size)
    return BlockMask.from_kv_blocks(*lists(some & ~every), *lists(every), BLOCK, visible, sizes)


Attention = Callable[[Tensor, Tensor, Tensor, PackedRows, float, float | None, int | None], Tensor]
"""``(q, k, v, rows, scale, cap, window)`` → ``[queries, heads, head_dim]``.

``q`` is ``[queries, heads, head_dim]``; ``k`` and ``v`` are ``[tokens, key_value_heads, head_dim]``.
``cap``: logits become ``cap * tanh(logits / cap)``. ``window``: a position sees itself and the
``window - 1`` positions before it.
"""


def best(rows: PackedRows, dtype: torch.dtype, cap: float | None) -> Attention:
    """The fastest of the three that can compute this; a few queries a row are too little for a kernel."""
    few = rows.queries != rows.lengths
    if few or dtype == torch.float32 or not has_kernels(rows.device):
        return row_by_row
    return varlen if cap is None else flex


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """PyTorch's flash attention needs an Ampere GPU or a newer one; a T4, say, has none."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def row_by_row(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Each row by itself: no padding, nothing is computed across rows."""
    by_head = (x.transpose(0, 1) for x in (q, k, v))
    sizes = (rows.queries, rows.lengths, rows.lengths)
    parts = (torch.split(x, list(size), dim=1) for x, size in zip(by_head, sizes, strict=True))
    out = [_one_row(*part, scale, cap, window) for part in zip(*parts, strict=True)]  # type: ignore[call-arg]
    return torch.cat(out)


def _one_row(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, window: int | None) -> Tensor:
    """``q`` ``[heads, queries, d]`` asks for the last positions of ``k``, ``v`` ``[kv_heads, tokens, d]``."""
    queries, tokens = q.shape[1], k.shape[1]
    far = window is not None and window < tokens
    if cap is not None:
        return _capped(q, k, v, scale, cap, _visible(queries, tokens, window, q.device))
    if queries == tokens and not far:
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and tokens <= SHORT and q.requires_grad:
            return cast(Tensor, _ShortRow.apply(q, k, v, scale)).transpose(0, 1)  # type: ignore[no-untyped-call]
        options: dict[str, Any] = {"is_causal": True}
    elif queries == 1 and not far:
        options = {}
    else:
        options = {"attn_mask": _visible(queries, tokens, window, q.device)}
    if q.device.type == "cuda" and not has_kernels(q.device):
        k, v = _for_each_query_head(k, q), _for_each_query_head(v, q)  # else all logits would be written out
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, enable_gqa=True, **options)
    return out[0].transpose(0, 1)


def _for_each_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values ``[kv_heads, tokens, d]`` repeated for the heads that share them."""
    return x.repeat_interleave(len(q) // len(x), dim=0)


SHORT = 256
"""Tokens up to which PyTorch's flash attention on a CPU spends more on its bfloat16 backward pass than
plain matrix products do (2 cores with AMX: 0.4 against 1.2 ms at 64 tokens, 1.6 against 3.0 at 200)."""


class _ShortRow(torch.autograd.Function):
    """Causal attention of a short row on a CPU: PyTorch's forward, and a backward of matrix products."""

    QUERIES = 128  # at a time: keys after the last of them are skipped

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        attend = F.scaled_dot_product_attention
        out = attend(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)[0]
        ctx.save_for_backward(q, k, v, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With weights P = softmax(S): dS = P ∘ (dP − rowsum(dO ∘ O)); queries of a group share k and v."""
        q, k, v, out = ctx.saved_tensors
        groups, tokens, _ = k.shape
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        inner = torch.linalg.vecdot(d_out.float(), out.float())[..., None]
        for start in range(0, tokens, _ShortRow.QUERIES):
            asking = slice(start, min(tokens, start + _ShortRow.QUERIES))
            end = asking.stop
            shape = (groups, -1, end - start, end)
            by_group = [x[:, asking].reshape(groups, -1, x.shape[-1]) for x in (q, d_out)]
            hidden = ~_visible(end - start, end, None, q.device)
            logits = torch.bmm(by_group[0], k[:, :end].transpose(1, 2)).view(shape).float()
            weights = logits.mul_(ctx.scale).masked_fill_(hidden, float("-inf")).softmax(-1)
            d_v[:, :end] += torch.bmm(weights.to(q.dtype).view(groups, -1, end).transpose(1, 2), by_group[1])
            d_weights = torch.bmm(by_group[1], v[:, :end].transpose(1, 2)).view(shape).float()
            inner_here = inner[:, asking].reshape(groups, -1, end - start, 1)
            d_logits = (
                d_weights.sub_(inner_here).mul_(weights).mul_(ctx.scale).to(q.dtype).view(groups, -1, end)
            )
            d_q[:, asking] = torch.bmm(d_logits, k[:, :end]).view(q.shape[0], -1, q.shape[-1])
            d_k[:, :end] += torch.bmm(d_logits.transpose(1, 2), by_group[0])
        return d_q, d_k, d_v, None


def _capped(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, visible: Tensor) -> Tensor:
    k, v = _for_each_query_head(k, q), _for_each_query_head(v, q)
    logits = cap * torch.tanh(q @ k.transpose(1, 2) * scale / cap)
    weights = logits.float().masked_fill(~visible, float("-inf")).softmax(dim=-1).to(q.dtype)
    return (weights @ v).transpose(0, 1)


def _visible(queries: int, tokens: int, window: int | None, device: torch.device) -> Tensor:
    """bool ``[queries, tokens]``: what the last ``queries`` positions of a row may see."""
    query = torch.arange(tokens - queries, tokens, device=device)[:, None]
    key = torch.arange(tokens, device=device)
    return (key <= query) & (query - key < (window or tokens))


def varlen(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """Flash attention that knows where rows begin; every position asks.

    Raises:
        ValueError: the model caps its attention logits, which this kernel can't.
    """
    if cap is not None:
        raise ValueError(f"attention logits capped at {cap}: varlen attention can't cap; use flex")
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters  # it has grown from torch 2.10 to 2.13
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
    if "enable_gqa" in known:  # before there was such an option, the kernel took grouped keys without it
        options["enable_gqa"] = True
    longest = max(rows.lengths)
    return cast(Tensor, varlen_attn(q, k, v, rows.bounds, rows.bounds, longest, longest, **options))


def flex(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, scale: float, cap: float | None, window: int | None
) -> Tensor:
    """FlexAttention with a mask that keeps rows apart; on CUDA compiled into one kernel; every position asks.

    A window wider than every row is no window: such layers then share the mask of the others.
    """
    narrow = window if window is not None and window < max(rows.lengths) else None

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cast(float, cap) * torch.tanh(score / cast(float, cap))

    missing = max(0, LEAST - rows.tokens)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x for x in (q, k, v))
    out = _flex_attention(q.device.type)(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        score_mod=None if cap is None else capped,
        block_mask=rows.block_mask(narrow),
        scale=scale,
        enable_gqa=True,
        kernel_options=_tiles(q.device),
    )
    return cast(Tensor, out)[0, :, : rows.tokens].transpose(0, 1)


@functools.cache
def _tiles(device: torch.device) -> dict[str, int] | None:
    """Tile sizes for GPUs whose shared memory PyTorch's own choice does not fit into, with 256-wide heads.

    That asks for 149 KiB on GPUs of the A100's time and 193 on an H100, which have 163 and 227. An RTX 3090,
    4090 or 5090 has 99; these sizes need 69 (all compiled with torch 2.11, none of it run).
    """
    if device.type != "cuda":
        return None
    gpu: Any = torch.cuda.get_device_properties(device)
    if gpu.shared_memory_per_block_optin > 160 * 1024:
        return None
    backward = dict.fromkeys(("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), 32)
    return {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_stages": 2, **backward, "bwd_num_stages": 2}


@functools.cache
def _flex_attention(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention) if device == "cuda" else cast(Callable[..., Any], flex_attention)


def compiled(function: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
    """``torch.compile`` for batches of every length at once, with a model's numbers as constants.

    Without dynamic shapes each length would be compiled anew. With them PyTorch takes every Python float for
    a variable too, and FlexAttention's kernels can't be built around a variable cap (torch 2.11, 2.13).
    """
    fast = torch.compile(function, dynamic=True, backend=backend)

    @functools.wraps(function)
    def with_constants(*args: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(specialize_float=True):
            return fast(*args, **options)

    return with_constants
