"""How much memory a run holds and will need, and giving back what it holds without need."""

from __future__ import annotations

import ctypes
import functools
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn


def peak_gb() -> float:
    """Most memory held so far: of the GPU where there is one, else of this process; in 10⁹ bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def free_bytes() -> int:
    """Memory that tensors can still get, of the GPU where there is one, else of this machine."""
    if not torch.cuda.is_available():
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0]) + unused


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a tensor did not fit; on a CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass
class Kept:
    """Bytes that autograd keeps for the backward pass."""

    bytes: int = 0


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[Kept]:
    """Counts what the forward passes inside keep, each storage once and the model's own weights not at all.

    The results must be held until the end of the block, or a freed storage could be counted again.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = Kept()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


SLACK_GB = 2.0
"""Freed memory worth giving back: less of it is soon used again, and to fetch it anew takes time."""


class Releaser:
    """Gives freed activations back to the system; does nothing on a GPU, whose allocator reuses them well.

    glibc keeps freed blocks for itself, and batches of ever new shapes do not fit into the old ones: a
    training of SmolLM2 that needs 3 GB grew to 9 GB within an epoch.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._least = self._held()

    def release(self) -> None:
        """To be called when a batch has been freed."""
        if torch.cuda.is_available() or self._held() < self._least + SLACK_GB * 1e9:
            return
        _malloc_trim()(0)
        self._least = min(self._least, self._held())

    def _held(self) -> float:
        return float(self._process.memory_info().rss)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it; macOS and musl do not
    return trim if trim is not None else lambda _: None
