"""Causal attention in bfloat16 on a CPU as batched matrix products, rows of similar length together.

PyTorch's flash attention spends most of its time on a CPU outside of matrix products, above all in its
backward pass. Here weights are computed for :data:`QUERIES` queries of several rows at a time and recomputed
in the backward pass, so that, as with flash attention, memory grows with the number of tokens and not of
pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lmsys_unsloth.model.packing import causal_mask

QUERIES = 64
"""Number of queries of a row that are handled at a time; keys after the last of them are skipped."""

MAX_LOGITS = 2**20
"""Number of logits computed at a time, unless one row has more; more would not stay in the cache."""

MAX_PADDING = 2**16
"""A row joins a group of longer ones if its padding adds at most this many logits: computing them takes about
as long as starting the operations for one more group."""


class Group(NamedTuple):
    """Rows attended together, padded to the longest."""

    start: int
    """Index of the first of its ``key_value_heads * rows * length`` entries among those of all groups."""
    rows: int
    length: int


class Layout(NamedTuple):
    """How packed rows are copied into groups. An entry is a position of a row and a key/value head."""

    groups: tuple[Group, ...]
    source: Tensor
    """For each entry, ordered by group, head, row, position: its index in the packed ``[tokens, heads]``.
    That of padding is the row's last token."""
    target: Tensor
    """For each packed token and head: its entry."""
    padding: Tensor
    """Entries that are padding."""


@functools.lru_cache(maxsize=16)
def lay_out(lengths: tuple[int, ...], heads: int, key_value_heads: int) -> Layout:
    """Group rows of similar length.

    >>> [group[1:] for group in lay_out((90, 300, 80), 9, 3).groups]
    [(1, 300), (2, 90)]
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[groups[-1][0]] if groups else 0
        padding = heads * (longest**2 - lengths[row] ** 2)
        size = heads * min(QUERIES, longest) * longest * (len(groups[-1]) + 1) if groups else 0
        if groups and padding <= MAX_PADDING and size <= MAX_LOGITS:
            groups[-1].append(row)
        else:
            groups.append([row])
    first = torch.tensor([0, *lengths]).cumsum(0)
    sources: list[Tensor] = []
    paddings: list[Tensor] = []
    laid_out: list[Group] = []
    start = 0
    for members in groups:
        rows, length = torch.tensor(members), lengths[members[0]]
        last = torch.tensor([lengths[row] for row in members])[:, None] - 1
        position = torch.arange(length)
        tokens = first[rows, None] + torch.minimum(position, last)
        head = torch.arange(key_value_heads)[:, None, None]
        sources.append((tokens * key_value_heads + head).flatten())
        paddings.append((position > last).expand(key_value_heads, -1, -1).flatten())
        laid_out.append(Group(start, len(members), length))
        start += len(sources[-1])
    source, is_padding = torch.cat(sources), torch.cat(paddings)
    target = torch.empty(sum(lengths) * key_value_heads, dtype=torch.int64)
    target[source[~is_padding]] = (~is_padding).nonzero()[:, 0]
    return Layout(tuple(laid_out), source, target, is_padding.nonzero()[:, 0])


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Attend causally within each row of packed ``q`` ``[tokens, heads, head_dim]``; returns the same shape.

    ``k`` and ``v`` have fewer heads, each shared by neighbouring heads of ``q``.
    """
    return cast(Tensor, _GroupedRows.apply(q, k, v, lengths, scale))  # type: ignore[no-untyped-call]


class _GroupedRows(torch.autograd.Function):
    """Keeps ``q``, ``k`` and ``v``; FlashAttention (arXiv:2205.14135) keeps its result as well."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.layout, ctx.scale = lay_out(lengths, q.shape[1], k.shape[1]), scale
        copies = [_copy_entries(x, k.shape[1], ctx.layout) for x in (q, k, v)]
        result = torch.empty_like(copies[0])
        for queries, keys, values, out in _by_group(ctx.layout, k.shape[1], *copies, result):
            for chunk, seen in _chunks(queries, keys):
                weights = _weights(queries[:, chunk], keys[:, :seen], scale)
                torch.bmm(weights, values[:, :seen], out=out[:, chunk])
        return result.index_select(0, ctx.layout.target).view_as(q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With weights W = softmax(S): dS = W ∘ (dW − rowsum(dW ∘ W)), PyTorch's backward of softmax."""
        q, k, v = ctx.saved_tensors
        copies = [_copy_entries(x, k.shape[1], ctx.layout) for x in (q, k, v, gradient)]
        copies[3].index_fill_(0, ctx.layout.padding, 0)
        d_q = torch.empty_like(copies[0])
        d_k, d_v = (torch.zeros(copies[1].shape) for _ in range(2))  # float32: chunks are added up
        parts = _by_group(ctx.layout, k.shape[1], *copies, d_q, d_k, d_v)
        for queries, keys, values, d_out, d_queries, d_keys, d_values in parts:
            for chunk, seen in _chunks(queries, keys):
                weights = _weights(queries[:, chunk], keys[:, :seen], ctx.scale)
                d_values[:, :seen] += torch.bmm(weights.transpose(1, 2), d_out[:, chunk])
                d_weights = torch.bmm(d_out[:, chunk], values[:, :seen].transpose(1, 2))
                d_logits = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                torch.bmm(d_logits, keys[:, :seen], out=d_queries[:, chunk])
                d_keys[:, :seen] += torch.bmm(d_logits.transpose(1, 2), queries[:, chunk])
        d_q, d_k = d_q.mul_(ctx.scale), d_k.mul_(ctx.scale)
        d_packed = (dx.to(q.dtype).index_select(0, ctx.layout.target) for dx in (d_q, d_k, d_v))
        return *(dx.view_as(x) for x, dx in zip((q, k, v), d_packed, strict=True)), None, None


def _copy_entries(x: Tensor, key_value_heads: int, layout: Layout) -> Tensor:
    """Copy ``[tokens, heads, head_dim]`` to ``[entries, heads per key head * head_dim]``."""
    return x.reshape(x.shape[0] * key_value_heads, -1).index_select(0, layout.source)


def _by_group(layout: Layout, key_value_heads: int, *copies: Tensor) -> Iterator[list[Tensor]]:
    """Yield views ``[key_value_heads * rows, length * heads per key head, head_dim]`` for each group."""
    head_dim = copies[1].shape[1]
    for start, rows, length in layout.groups:
        batch = key_value_heads * rows
        yield [x[start : start + batch * length].view(batch, -1, head_dim) for x in copies]


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, int]]:
    """Yield slices of the queries of :data:`QUERIES` positions, and the number of keys that they see."""
    length = keys.shape[1]
    shared = queries.shape[1] // length
    for start in range(0, length, QUERIES):
        seen = min(length, start + QUERIES)
        yield slice(start * shared, seen * shared), seen


def _weights(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Compute ``[batch, queries, keys]``, of which the last queries are those of the last keys."""
    logits = torch.baddbmm(queries.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    positions = (keys.shape[1] - 1) % QUERIES + 1
    mask = _triangle(queries.shape[1] // positions, logits.dtype)
    logits[:, :, -positions:] += mask[: queries.shape[1], :positions]
    return logits.softmax(-1)


@functools.cache
def _triangle(shared: int, dtype: torch.dtype) -> Tensor:
    """Zeros for visible keys, -inf for later ones; ``[QUERIES * shared, QUERIES]``."""
    visible = causal_mask(QUERIES, QUERIES, None, torch.device("cpu"))
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, float("-inf"))
    return mask.repeat_interleave(shared, 0)
