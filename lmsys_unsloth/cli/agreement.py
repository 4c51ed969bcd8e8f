"""Settings and run directory, which all ranks of a command must have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError


def agree(configs: Sequence[Config], run: Run) -> Run:
    """Check that all ranks were started with the same settings, and return the first one's run directory.

    Raises:
        UserError: the settings differ or are for one process only, or a rank can't see the run directory.
    """
    group = ranks.current()
    if group.size == 1:
        return run
    for name in ("preview", "parity"):
        if any(getattr(config.debug, name) for config in configs):
            raise UserError(
                f"debug.{name} = True: done by one process, but {group.size} were started.\n"
                f"  Leave out the launcher: python … debug={name}"
            )
    everywhere = group.gather([_flat("", config.model_dump(mode="json")) for config in configs])
    for rank, values in enumerate(everywhere):
        if values != everywhere[0]:
            raise UserError(
                f"rank {rank} was started with other settings than rank 0: "
                f"{_difference(everywhere[0], values)}.\n  Start the same command on every machine."
            )
    shared = Run(Path(group.share(str(run.path.absolute()))))
    blind = [rank for rank, seen in enumerate(group.gather(shared.path.is_dir())) if not seen]
    if blind:
        raise UserError(
            f"{shared.path}: rank {', '.join(map(str, blind))} does not see this run directory.\n"
            "  It must be on a disk that all machines share: hydra.run.dir=DIR."
        )
    return run if group.first else shared


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        k: v for name, each in value.items() for k, v in _flat(f"{prefix}.{name}".lstrip("."), each).items()
    }


def _difference(first: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """The first settings that differ, as ``train.epochs = 2 (rank 0: 1)``."""
    if len(first) != len(other):
        return f"{len(other)} runs (rank 0: {len(first)})"
    pairs = [(a, b) for a, b in zip(first, other, strict=True) if a != b]
    found = [
        f"{k} = {b.get(k)!r} (rank 0: {a.get(k)!r})"
        for a, b in pairs
        for k in {**a, **b}
        if a.get(k) != b.get(k)
    ]
    return ", ".join(found[:3])
