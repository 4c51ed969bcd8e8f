"""The run directory: the only module that knows the names of its files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmsys_unsloth.config.environment import describe_environment
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json, write_text

log = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint-"
_COMPLETE = "complete.json"
"""Written last into a checkpoint: one without it was interrupted while it was written and is not used."""


@dataclass(frozen=True)
class Run:
    """Paths inside one run directory, and the small files that describe it.

    >>> Run(Path("runs/a")).predictions.as_posix()
    'runs/a/predictions.parquet'
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a directory that an earlier command created.

        Raises:
            UserError: the directory does not exist or has no ``config.yaml``.
        """
        run = cls(path)
        if not path.is_dir():
            raise UserError(
                f"{path}: no such run directory. `python train.py` prints the path of the one it makes."
            )
        if not run.config.is_file():
            raise UserError(
                f"{path}: not a run directory, it has no config.yaml.\n"
                "  Name the folder that train.py printed (it also holds adapter/, data.json, metrics.json)."
            )
        return run

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, hardware, commit and command."""
        return self.path / "env.json"

    @property
    def data(self) -> Path:
        """Source of the rows, their fingerprint, folds and leak report."""
        return self.path / "data.json"

    @property
    def folds(self) -> Path:
        """Fold and prompt group of every row."""
        return self.path / "folds.csv"

    @property
    def training_rows(self) -> Path:
        """Ids and content hashes of the rows that the adapters were trained on."""
        return self.path / "training_rows.csv"

    @property
    def bad_rows(self) -> Path:
        """Rows that could not be used, with reasons."""
        return self.path / "bad_rows.csv"

    @property
    def samples(self) -> Path:
        """First validation rows as the model sees them."""
        return self.path / "samples.json"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted training resumes from."""
        return self.path / "checkpoints"

    @property
    def training(self) -> Path:
        """Speed, memory and learning curve."""
        return self.path / "training.json"

    @property
    def adapter(self) -> Path:
        """LoRA adapters as PEFT writes them."""
        return self.path / "adapter"

    @property
    def predictions(self) -> Path:
        """Probabilities of the scored rows."""
        return self.path / "predictions.parquet"

    @property
    def submission(self) -> Path:
        """Probabilities in Kaggle's submission format."""
        return self.path / "submission.csv"

    @property
    def metrics(self) -> Path:
        """Log loss and everything else that is computed from the predictions."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """Self-contained HTML report."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """The report's figures as PNG files."""
        return self.path / "plots"

    @property
    def wandb_id(self) -> Path:
        """Id under which the run is continued in wandb."""
        return self.path / "wandb_id"

    def settings(self) -> dict[str, Any]:
        """``config.yaml`` as plain nested values.

        Raises:
            UserError: the file does not hold a mapping.
        """
        loaded = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise UserError(f"{self.config}: not a configuration; restore it or start a new run.")
        return loaded

    def describe(self, config: Config, command: str) -> None:
        """Write ``config.yaml`` and ``env.json``."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.config, text)
        write_json(self.environment, describe_environment(command))

    def write_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write ``samples.json``: ``id, text, input_ids, answer_ids`` of each sample."""
        write_json(self.samples, list(samples))

    def data_description(self) -> dict[str, Any]:
        """``data.json``; empty when the run has none.

        Raises:
            UserError: the file is not a JSON object.
        """
        return _read_json(self.data)

    def environment_description(self) -> dict[str, Any]:
        """``env.json``; empty when the run has none."""
        return _read_json(self.environment)

    def learning_curve(self) -> list[dict[str, float]]:
        """``step``, ``loss`` and ``learning_rate`` of each logged step; empty without training."""
        return list(_read_json(self.training).get("learning_curve", []))

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after optimiser step ``step``."""
        return self.checkpoints / f"{_CHECKPOINT}{step}"

    def mark_complete(self, step: int) -> None:
        """Record that the checkpoint after ``step`` was written whole."""
        write_json(self.checkpoint(step) / _COMPLETE, {"step": step})

    def newest_checkpoint(self) -> int | None:
        """Step of the latest checkpoint that was written whole; incomplete later ones are deleted."""
        steps = sorted(int(folder.name.removeprefix(_CHECKPOINT)) for folder in self._checkpoint_folders())
        for step in reversed(steps):
            if (self.checkpoint(step) / _COMPLETE).is_file():
                return step
            log.warning("%s was not written whole and is deleted", self.checkpoint(step))
            shutil.rmtree(self.checkpoint(step))
        return None

    def can_resume(self) -> bool:
        """Whether a training was interrupted after its first checkpoint."""
        return bool(self._checkpoint_folders())

    def _checkpoint_folders(self) -> list[Path]:
        return list(self.checkpoints.glob(f"{_CHECKPOINT}*"))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it or score the run again.") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a JSON object; restore it or score the run again.")
    return loaded
