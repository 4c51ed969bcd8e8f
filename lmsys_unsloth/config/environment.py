"""The software and hardware that a run was made with, as stored in ``RUN/env.json``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmsys_unsloth.core import ranks

_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth",
    "unsloth_zoo", "xformers", "triton", "hydra-core", "wandb", "numpy", "scikit-learn", "tokenizers",
)  # fmt: skip


def describe_environment(command: str) -> dict[str, Any]:
    """Command, commit, versions and hardware: what is needed to reproduce the results of a run."""
    return {
        "command": command,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "processes": ranks.current().size,
        "gpus": _gpus(),
        "packages": installed_versions(_PACKAGES),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    versions: dict[str, str] = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit() -> str | None:
    """Commit of the checkout that contains this file, followed by ``+`` if it has uncommitted changes."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> list[str]:
    """Names of the GPUs; empty before torch is imported, because the import takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
