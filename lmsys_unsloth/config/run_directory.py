"""The run directory: the only module that knows the names of its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmsys_unsloth.config.environment import describe_environment
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_errors, write_json, write_text

log = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint-"
_COMPLETE = "complete.json"
"""Name of the last file written into a checkpoint, with hashes of the others; without it the checkpoint is
incomplete and not used."""
_LOCK = ".lock"
"""Name of the file that a process locks while it works in the run directory."""


class _Inside:
    """Attribute of :class:`Run`: the path of a file or folder in the run directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, owner: type[Run]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class Run:
    """Paths in a run directory, and access to the small files that describe the run.

    >>> Run(Path("runs/a")).predictions.as_posix()
    'runs/a/predictions.parquet'
    """

    path: Path

    config = _Inside("config.yaml")
    """Resolved configuration."""
    environment = _Inside("env.json")
    """Versions, hardware, commit and command."""
    data = _Inside("data.json")
    """Source of the rows, their fingerprint, folds and leak report."""
    folds = _Inside("folds.csv")
    """Fold and prompt group of every row."""
    training_rows = _Inside("training_rows.csv")
    """Ids and content hashes of the rows that the adapters were trained on."""
    bad_rows = _Inside("bad_rows.csv")
    """Rows that could not be used, with reasons."""
    samples = _Inside("samples.json")
    """First validation rows as the model sees them."""
    checkpoints = _Inside("checkpoints")
    """Folder of checkpoints, from which an interrupted training resumes."""
    best_checkpoint = _Inside("checkpoints/best")
    """Weights and score of the best evaluation on the early-stopping set."""
    training = _Inside("training.json")
    """Speed, memory, learning curve and the losses on the early-stopping set."""
    evaluations = _Inside("evaluations.json")
    """Losses on the early-stopping set so far, by step; written while training."""
    adapter = _Inside("adapter")
    """Folder of LoRA adapters in PEFT's format, or of fully trained weights."""
    parity = _Inside("parity.json")
    """Comparison of the model's forward passes, of ``debug=parity``."""
    engine_check = _Inside("engine_check.json")
    """Comparison of an engine with transformers, of ``engine.check=N``."""
    partial_scores = _Inside("partial_scores")
    """Folder of what an interrupted scoring has computed; deleted when ``predictions`` is written."""
    predictions = _Inside("predictions.parquet")
    """Probabilities of the scored rows."""
    calibration = _Inside("calibration.json")
    """Temperature and stack fitted on ``predictions``, for later predictions of other rows."""
    submission = _Inside("submission.csv")
    """Probabilities in Kaggle's submission format."""
    metrics = _Inside("metrics.json")
    """Log loss and everything else computed from the predictions."""
    report = _Inside("report.html")
    """Self-contained HTML report."""
    plots = _Inside("plots")
    """Folder of the report's figures as PNG files."""
    job = _Inside("job.json")
    """State of a job of a sweep."""
    output = _Inside("output.log")
    """What a job of a sweep printed."""
    stop = _Inside("stop")
    """Request to end a job of a sweep with a checkpoint."""
    tensorboard = _Inside("tensorboard")
    """Folder of event files of ``logger=tensorboard``."""
    mlflow_id = _Inside("mlflow_id")
    """Id under which the run is continued in MLflow."""
    wandb_id = _Inside("wandb_id")
    """Id under which the run is continued in wandb."""

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a directory that an earlier command created."""
        run = cls(path)
        if not path.is_dir():
            raise UserError(
                f"{path}: no such run directory. `python train.py` prints the path of the one it makes"
                f"{_newest()}."
            )
        if not run.config.is_file():
            raise UserError(
                f"{path}: not a run directory, it has no config.yaml{_newest()}.\n"
                "  Name the folder that train.py printed (it also holds adapter/, data.json, metrics.json)."
            )
        return run

    def remove_if_unused(self) -> None:
        """Remove the directory if it holds nothing but Hydra's record and logs: the command ended at once."""
        files = list(self.path.iterdir()) if self.path.is_dir() else []
        if files and all(file.name == ".hydra" or file.suffix == ".log" for file in files):
            shutil.rmtree(self.path, ignore_errors=True)

    def settings(self) -> dict[str, Any]:
        """Return ``config.yaml`` as nested plain values."""
        loaded = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise UserError(f"{self.config}: not a configuration; restore it or start a new run.")
        truncation = (loaded.get("prompt") or {}).get("truncation") or {}
        if truncation.get("share") == "longer_first":  # key of earlier versions; now the only behaviour
            del truncation["share"]
        if isinstance(model := loaded.get("model"), dict):
            model.pop("architecture", None)  # key of earlier versions; the model's config.json says it
            model.setdefault("licence", "not recorded")
        return loaded

    def describe(self, config: Config, command: str) -> None:
        """Write ``config.yaml`` and ``env.json``."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.config, text)
        write_json(self.environment, describe_environment(command))

    def data_description(self) -> dict[str, Any]:
        """Return ``data.json``; empty if the run has none."""
        return _read_json(self.data)

    def merged_runs(self) -> list[Path]:
        """The trained runs whose scores ``eval.py runs=[…]`` merged in this directory.

        Raises:
            UserError: nothing was merged here.
        """
        named = self.data_description().get("runs") or []
        flat = [path for part in named for path in ([part] if isinstance(part, str) else part)]
        if not flat:
            raise UserError(
                f"{self.path}: neither a trained run (it has no adapter/) nor a cross-validation.\n"
                "  Name the directory that train.py made, or that of `train.py cv=5` or `eval.py runs=[…]`."
            )
        return [Path(path) for path in dict.fromkeys(flat)]

    def calibration_description(self) -> dict[str, Any]:
        """Return ``calibration.json``; empty if the run has none."""
        return _read_json(self.calibration)

    def environment_description(self) -> dict[str, Any]:
        """Return ``env.json``; empty if the run has none."""
        return _read_json(self.environment)

    def learning_curve(self) -> list[dict[str, float]]:
        """Return the logged steps; empty without training.

        Entries have ``step`` and either ``loss`` and ``learning_rate``, or ``early_stopping_loss``.
        """
        return list(self.training_description().get("learning_curve", []))

    def training_description(self) -> dict[str, Any]:
        """Return ``training.json``; empty without training."""
        return _read_json(self.training)

    def metrics_description(self) -> dict[str, Any]:
        """Return ``metrics.json``; empty if nothing was scored."""
        return _read_json(self.metrics)

    def trained_rows_scored(self) -> int | None:
        """Number of scored rows that the model was trained on; None if it is not known."""
        overlap = self.metrics_description().get("trained_rows") or {"scored": 0}
        scored: int | None = overlap["scored"]
        return scored

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after optimiser step ``step``."""
        return self.checkpoints / f"{_CHECKPOINT}{step}"

    def mark_complete(self, step: int, keep: int) -> None:
        """Record that the checkpoint after ``step`` is complete; delete all but the ``keep`` newest."""
        folder = self.checkpoint(step)
        files = {path.name: _digest(path) for path in folder.iterdir() if path.name != _COMPLETE}
        write_json(folder / _COMPLETE, {"step": step, "sha256": files})
        complete = [n for n in self._checkpoint_steps() if (self.checkpoint(n) / _COMPLETE).is_file()]
        for old in complete[keep:]:
            shutil.rmtree(self.checkpoint(old))

    def newest_checkpoint(self) -> int | None:
        """Return the step of the newest complete checkpoint; incomplete or damaged newer ones are deleted."""
        for step in self._checkpoint_steps():
            problem = _problem_of_checkpoint(self.checkpoint(step))
            if problem is None:
                return step
            log.warning("%s %s; it is deleted, and the one before it used", self.checkpoint(step), problem)
            shutil.rmtree(self.checkpoint(step))
        return None

    def _checkpoint_steps(self) -> list[int]:
        """Steps of all checkpoints, the newest first."""
        folders = self.checkpoints.glob(f"{_CHECKPOINT}*")
        return sorted((int(folder.name.removeprefix(_CHECKPOINT)) for folder in folders), reverse=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the run directory; the system ends the lock with the process.

        Raises:
            UserError: another process works in the directory.
        """
        from filelock import FileLock, Timeout

        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise UserError(
                    f"{self.path}: another process is training or scoring in this run directory.\n"
                    "  Wait until it has ended, or stop it; its lock ends with it."
                ) from None
        try:
            yield
        finally:
            lock.release()

    def can_resume(self) -> bool:
        """Whether there is a checkpoint, or are scores, from which the command can resume."""
        return self.partial_scores.is_dir() or any(self.checkpoints.glob(f"{_CHECKPOINT}*"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem_of_checkpoint(folder: Path) -> str | None:
    """What makes a checkpoint unusable, as a verb phrase; None if nothing does."""
    try:
        recorded = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "is incomplete"
    damaged = [
        name for name, value in recorded.items()
        if not (folder / name).is_file() or _digest(folder / name) != value
    ]  # fmt: skip
    return f"is damaged ({', '.join(damaged)})" if damaged else None


def _newest(count: int = 3) -> str:
    """The newest runs in ``runs/`` of the working directory, in words; empty if there are none."""
    found = sorted(Path("runs").glob("*/*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True)
    return f"; the newest here: {', '.join(str(file.parent) for file in found[:count])}" if found else ""


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it or score the run again.") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a JSON object; restore it or score the run again.")
    return loaded
