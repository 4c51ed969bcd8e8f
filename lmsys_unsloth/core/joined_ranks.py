"""Several processes of one command: what they exchange, and what if one is lost.

They talk through process groups of their own. PyTorch's default group is left alone, as libraries behave
differently where there is one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.ranks import RankLost, Ranks, T

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

STEP_MINUTES = 30
"""Minutes after which a rank that does not answer is given up. One that has ended is noticed at once."""

PREPARATION_MINUTES = 24 * 60
"""Minutes that the others wait while the first rank reads and encodes the rows."""

ANSWER_SECONDS = 5.0
"""Seconds within which a rank must say that it is still there, after another one has ended."""


class JoinedRanks(Ranks):
    """This process and the others that the launcher started."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        store, self.rank, self.size = next(rendezvous("env://"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.distributed_c10d.PrefixStore(f"lmsys_unsloth/{attempt}", store)
        self._group: Any = dist.ProcessGroupGloo(
            dist.distributed_c10d.PrefixStore("gloo", self._store), self.rank, self.size,
            timedelta(minutes=STEP_MINUTES),
        )  # fmt: skip
        self._gpu_group: Any = None
        self._names = [""] * self.size
        self._names = self.gather(f"process {os.getpid()} on {socket.gethostname()}")
        if threading.current_thread() is threading.main_thread():
            # The launcher sends SIGTERM when a rank has failed; by default no other rank could say which.
            signal.signal(signal.SIGTERM, signal.default_int_handler)

    def check_gpus(self) -> None:
        """Set up sums on GPUs, if every rank has one of its own.

        Raises:
            UserError: some ranks have a GPU and others have none.
        """

        gpus = self.gather(_describe_gpu())
        without = [rank for rank, gpu in enumerate(gpus) if gpu is None]
        if len(without) == self.size:
            return
        if without:
            raise UserError(
                f"{self.size} processes were started, but rank {', '.join(map(str, without))} found no GPU.\n"
                "  Start as many processes on a machine as it has GPUs (--nproc-per-node)."
            )
        names, devices = {name for name, _ in gpus}, {device for _, device in gpus}
        if len(names) > 1 and self.first:
            log.warning("the GPUs differ (%s): the slowest determines the speed", ", ".join(sorted(names)))
        if len(devices) < self.size:
            if self.first:
                log.warning("%d processes share %d GPU(s): slower than one each", self.size, len(devices))
            return  # NCCL refuses this; sums go through the CPU
        failures = self.gather(self._set_up_nccl())
        if any(failures):
            self._gpu_group = None
            if self.first:
                log.warning("sums go through the CPU, as NCCL failed: %s", next(filter(None, failures)))

    def _set_up_nccl(self) -> str | None:
        """Add up one number on the GPUs; returns the error if that fails."""
        import torch
        import torch.distributed as dist

        try:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timedelta(minutes=STEP_MINUTES)
            store = dist.distributed_c10d.PrefixStore("nccl", self._store)
            self._gpu_group = dist.ProcessGroupNCCL(store, self.rank, self.size, options)
            count = torch.ones(1, device="cuda")
            self._gpu_group.allreduce([count]).wait()
            return None if count.item() == self.size else f"{self.size} ones gave {count.item()}"
        except (AttributeError, RuntimeError) as error:  # the first where PyTorch was built without NCCL
            return f"{type(error).__name__}: {error}"

    def gather(self, value: Any) -> list[Any]:
        import torch

        data = json.dumps(value).encode()
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.add(sizes)
        own = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._run(lambda: self._group.allgather([found], [own]))
        each = zip(found, sizes.tolist(), strict=True)
        return [json.loads(part[:length].numpy().tobytes()) for part, length in each]

    def share(self, value: T) -> T:
        first: T = self.gather(value if self.first else None)[0]
        return first

    def any(self, value: bool) -> bool:
        import torch

        count = torch.tensor([int(value)])
        self.add(count)
        return bool(count)

    def add(self, tensor: Tensor) -> None:
        if tensor.is_cuda and self._gpu_group is not None:
            self._run(lambda: self._gpu_group.allreduce([tensor]))
            return
        values = tensor.cpu()
        self._run(lambda: self._group.allreduce([values]))
        if tensor.is_cuda:
            tensor.copy_(values)

    def wait(self, minutes: float = STEP_MINUTES) -> None:
        import torch

        options = torch.distributed.AllreduceOptions()
        options.timeout = timedelta(minutes=minutes)
        self._run(lambda: self._group.allreduce([torch.zeros(1)], options))

    def run_first(self, function: Callable[[], T]) -> T:
        if self.first:
            result = function()
            self.wait(PREPARATION_MINUTES)
            return result
        self.wait(PREPARATION_MINUTES)
        with _no_logging():
            return function()

    def _run(self, start: Callable[[], Any]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            log.debug("%s", error)
            raise self.lost() or RankLost("the connection to the other processes broke", True) from None

    def lost(self) -> RankLost | None:
        reasons: dict[int, str] = {}
        try:
            self._store.set(f"here/{self.rank}", "")
            missing = self._unanswered("here", [rank for rank in range(self.size) if rank != self.rank])
            for rank in missing:
                if self._has("reason", rank):
                    reasons[rank] = self._store.get(f"reason/{rank}").decode()
        except RuntimeError:  # without torchrun rank 0 holds the store, which ends with it
            missing = [0]
        if not missing:
            return None
        texts = [
            f"rank {rank} of {self.size} ({self._names[rank]}) "
            + (f"has ended: {reasons[rank]}" if rank in reasons else "has ended or does not answer")
            for rank in missing
        ]
        left = [rank for rank in range(self.size) if rank not in missing]
        # A rank with a reason has printed it itself.
        return RankLost(f"{'; '.join(texts)}. All others end too.", self.rank == left[0] and not reasons)

    def report(self, error: str) -> bool:
        try:
            self._store.set(f"reason/{self.rank}", error)
            if self.first or self._unanswered("reason", [0]):
                return True
            return self._store.get("reason/0").decode() != error
        except RuntimeError:  # see lost
            return True

    def _unanswered(self, key: str, others: Sequence[int]) -> list[int]:
        """Wait for an entry of each rank in the store; returns the ranks that made none in time."""
        end = time.monotonic() + ANSWER_SECONDS
        missing = list(others)
        while missing and time.monotonic() < end:
            time.sleep(0.05)
            missing = [rank for rank in missing if not self._has(key, rank)]
        return missing

    def _has(self, key: str, rank: int) -> bool:
        return bool(self._store.check([f"{key}/{rank}"]))


def _describe_gpu() -> list[str] | None:
    """Name and UUID of this process's GPU; None if it has none."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties: Any = torch.cuda.get_device_properties(0)
    return [properties.name, str(properties.uuid)]


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
