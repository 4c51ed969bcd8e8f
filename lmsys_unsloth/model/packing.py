"""Rows concatenated without padding, and the attention masks that keep them apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def to_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Copy numbers to a device; to a GPU from pinned memory, so that the CPU need not wait for the copy."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class PackedRows:
    """Layout of rows concatenated along one axis of ``n_tokens`` positions.

    Queries may be computed for the last positions of each row only, keys and values for all of them: the
    last decoder layer needs its output at the answer slot alone. All indices are computed on the CPU.
    """

    lengths: tuple[int, ...]
    """Number of tokens of each row."""
    query_lengths: tuple[int, ...]
    """Number of query positions of each row, its last ones; equal to ``lengths`` when all have a query."""
    device: torch.device
    _masks: dict[int | None, Any] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def n_tokens(self) -> int:
        return sum(self.lengths)

    @functools.cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own row, int64 ``[n_tokens]``."""
        return to_device(np.concatenate([np.arange(length) for length in self.lengths]), self.device)

    @functools.cached_property
    def row_ids(self) -> Tensor:
        """Index of the row of each token, int64 ``[n_tokens]``."""
        return to_device(np.repeat(np.arange(len(self.lengths)), self.lengths), self.device)

    @functools.cached_property
    def offsets(self) -> Tensor:
        """Index of the first token of each row, then ``n_tokens``; int32 ``[rows + 1]``."""
        return to_device(np.cumsum((0, *self.lengths), dtype=np.int32), self.device)

    def select_last(self, count: int) -> tuple[Tensor, PackedRows]:
        """Return the indices ``[rows * count]`` of the last positions, and a layout with queries at these."""
        index = (np.cumsum(self.lengths)[:, None] - np.arange(count, 0, -1)).reshape(-1)
        return to_device(index, self.device), PackedRows(
            self.lengths, (count,) * len(self.lengths), self.device
        )

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's mask for causal attention within each row, cached per window.

        Positions from ``n_tokens`` up to :data:`MIN_POSITIONS` form one more row: short batches are padded.
        """
        if window not in self._masks:
            padding = max(0, MIN_POSITIONS - self.n_tokens)
            row_ids = F.pad(self.row_ids, (0, padding), value=len(self.lengths))
            self._masks[window] = _block_mask(row_ids, window)
        return self._masks[window]


def causal_mask(queries: int, tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Keys visible from the last ``queries`` positions of a row of ``tokens``; bool ``[queries, tokens]``."""
    query = torch.arange(tokens - queries, tokens, device=device)[:, None]
    key = torch.arange(tokens, device=device)
    return (key <= query) & (query - key < (window or tokens))


BLOCK = 128
"""Number of positions in a block of FlexAttention's mask."""

MIN_POSITIONS = 3 * BLOCK
"""Minimum number of positions passed to FlexAttention. Below 128 PyTorch chooses another kernel, for which it
may find no settings (torch 2.11, Gemma 2's heads); and code compiled for a single block, or for as many
positions as a head is wide (256), is specialised to that size."""


def _block_mask(row_ids: Tensor, window: int | None) -> Any:
    """Build a ``BlockMask`` from the row of each position, int64 ``[positions]``, ascending.

    Works on pairs of blocks; PyTorch's ``create_block_mask`` evaluates every pair of positions, which takes
    8 bytes each when there is a window.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def is_visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = (row_ids[query] == row_ids[key]) & (key <= query)
        return causal if window is None else causal & (query - key < window)

    size = len(row_ids)
    reach = size if window is None else window
    first = torch.arange(0, size, BLOCK, device=row_ids.device)
    last = (first + BLOCK - 1).clamp(max=size - 1)
    q_first, q_last = first[:, None], last[:, None]
    any_visible = (first <= q_first) & (row_ids[last] >= row_ids[q_first]) & (q_first - last < reach)
    all_visible = (last < q_first) & (row_ids[first] == row_ids[q_last]) & (q_last - first < reach)
    all_visible &= q_first + BLOCK <= size  # PyTorch counts no key as visible from queries beyond the end

    def key_blocks(needed: Tensor) -> tuple[Tensor, Tensor]:
        """Number of key blocks of each query block, and their indices with the needed ones first."""
        indices = needed.int().argsort(dim=-1, descending=True, stable=True)
        return needed.sum(-1, dtype=torch.int32)[None, None], indices.int()[None, None]

    partial, full = key_blocks(any_visible & ~all_visible), key_blocks(all_visible)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK, is_visible, (size, size))
