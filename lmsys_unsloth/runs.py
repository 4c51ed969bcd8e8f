"""The run directory: everything needed to explain, resume, re-evaluate or ship a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmsys_unsloth.config import Config
from lmsys_unsloth.files import write_json, write_text
from lmsys_unsloth.settings import UserError

_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth",
    "unsloth_zoo", "xformers", "triton", "hydra-core", "wandb", "numpy", "scikit-learn", "tokenizers",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Paths inside one run directory, and the small files that describe it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Run:
        """A directory that an earlier command made.

        Raises:
            UserError: it is not there or holds no configuration.
        """
        run = cls(path)
        if not path.is_dir():
            raise UserError(
                f"{path}: no such run directory. `python train.py` prints the path of the one it makes."
            )
        if not run.config_file.is_file():
            raise UserError(
                f"{path}: not a run directory, it has no config.yaml.\n"
                "  Name the folder that train.py printed (it also holds adapter/, data.json, metrics.json)."
            )
        return run

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def submission(self) -> Path:
        return self.path / "submission.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def training(self) -> Path:
        return self.path / "training.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    def settings(self) -> dict[str, Any]:
        """``config.yaml`` as plain nested values."""
        loaded = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise UserError(f"{self.config_file}: not a configuration; restore it or start a new run.")
        return loaded

    def describe(self, config: Config, command: str) -> None:
        """Write ``config.yaml`` and ``env.json``."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.config_file, text)
        write_json(self.path / "env.json", environment(command))

    def for_report(self) -> dict[str, Any]:
        """What the report shows of a run besides its predictions; parts that are not there stay empty."""
        env = self._json("env.json")
        return {
            "config_yaml": self.config_file.read_text(encoding="utf-8"),
            "env": env,
            "learning_curve": self._json("training.json").get("learning_curve", []),
            "command": env.get("command", ""),
        }

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        loaded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return loaded if isinstance(loaded, dict) else {}

    def write_samples(self, samples: list[dict[str, Any]]) -> None:
        """``samples.json``: the first validation rows exactly as the model sees them."""
        write_json(self.path / "samples.json", samples)


def environment(command: str) -> dict[str, Any]:
    """Versions, hardware, commit and command: what someone needs to get the same numbers."""
    return {
        "command": command,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this code runs from, with ``+`` when it has uncommitted changes."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> list[str]:
    """GPU names, asked of torch only when something else has imported it already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
