"""The processes of one command: one, or several that ``torchrun`` or ``accelerate launch`` started.

Each process, called a rank, computes on one GPU or on a CPU. The first one (rank 0) decides and writes; the
others compute their share. Code that several ranks may run calls :func:`current`, whose methods do nothing
where there is one process only. :mod:`lmsys_unsloth.core.joined_ranks` has those of several processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lmsys_unsloth.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class RankLost(UserError):
    """Another rank has ended or does not answer, so the command can't go on.

    Args:
        message: which rank, and why.
        told: whether this rank is the one to tell the user.
    """

    def __init__(self, message: str, told: bool) -> None:
        super().__init__(message)
        self.told = told


class Ranks:
    """The rank of this process and what it can exchange with the others; here, a command of one process."""

    rank, size = 0, 1
    local_size = 1
    """Number of ranks on this machine."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides, writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank. They are sent as JSON."""
        return [value]

    def share(self, value: T) -> T:
        """Return the first rank's value. It is sent as JSON."""
        return value

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true on any rank."""
        return value

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, which is the same on each, bit by bit."""

    def wait(self) -> None:
        """Wait until all ranks have come here."""

    def run_first(self, function: Callable[[], T]) -> T:
        """Return ``function()``, which the first rank runs before the others: these find its results cached.

        What the others would log is left out, as the first rank has logged it.
        """
        return function()

    def lost(self) -> RankLost | None:
        """Return an error that names the ranks that have ended or do not answer; None if all are there."""
        return None

    def report(self, error: str) -> bool:
        """Let the others know the error that ends this rank, and return whether this rank is to print it."""
        return True


_joined = [Ranks()]


def current() -> Ranks:
    """Return the ranks of this command."""
    return _joined[-1]


def use(ranks: Ranks) -> None:
    """Make ``ranks`` those that :func:`current` returns."""
    _joined.append(ranks)
