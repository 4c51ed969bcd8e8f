"""Experiment tracking. With wandb, online or offline, an unreachable server never stops a run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_text
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.report import page
from lmsys_unsloth.report.flattening import flatten
from lmsys_unsloth.report.other_trackers import MlflowTracker, TensorBoardTracker
from lmsys_unsloth.report.results import Outcome
from lmsys_unsloth.train.metric_logger import MetricLogger

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
"""Time to wait for the server, in seconds, before a run continues offline."""

FINISH_SECONDS = 300.0
"""Time to wait for uploads at the end of a run, in seconds; what is not uploaded by then stays on disk."""

TAG_CHARACTERS = 64
"""Largest length of a tag that wandb accepts."""

JobType = Literal["train", "eval", "cv"]


class Tracker(MetricLogger, Protocol):
    """Receives the metrics of a run while it trains, and its results at the end."""

    def publish(self, outcome: Outcome, run: Run) -> None:
        """Publish the metrics, tables and plots of an evaluation; ``run`` holds the plots and the adapter."""


class NoTracker:
    """Does nothing (``logger=none``)."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def summarize(self, values: Mapping[str, Any]) -> None:
        pass

    def publish(self, outcome: Outcome, run: Run) -> None:
        pass


class WandbTracker:
    """Logs to one wandb run for each run directory, resumed under its id (``logger=wandb``)."""

    def __init__(
        self, config: Config, run: Run, *, job_type: JobType, sweep: str | None, overrides: Sequence[str]
    ) -> None:
        import wandb

        self.save_adapter = config.logger.save_adapter
        if not run.wandb_id.is_file():
            write_text(run.wandb_id, secrets.token_hex(4))
        settings = wandb.Settings(init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS, silent=True)
        options: dict[str, Any] = {
            "project": config.logger.project,
            "entity": config.logger.entity,
            "group": config.logger.group or sweep or cross_validation_group(config),
            # None leaves the tags of a resumed run as they are.
            "tags": [*config.logger.tags, *select_tags(overrides)] or None,
            "job_type": job_type,
            "name": run.path.name,
            "id": run.wandb_id.read_text(encoding="utf-8").strip(),
            "resume": "allow",
            "dir": str(run.path),
            "config": {**config.model_dump(mode="json"), "model_prompt": model_prompt(config)},
            # Otherwise the second job of a sweep in one process would continue the run of the first.
            "reinit": "finish_previous",
            "settings": settings,
        }
        mode = _mode()
        try:
            self.run = wandb.init(mode=mode, **options)
        except (wandb.Error, OSError) as error:
            if mode == "offline":
                raise
            log.warning("the wandb server can't be reached (%s); continuing offline", type(error).__name__)
            self.run = wandb.init(mode="offline", **options)
        if self.run.offline:
            files = run.path / "wandb" / "offline-run-*"
            log.info("wandb is offline; upload later with: wandb sync %s", files)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def publish(self, outcome: Outcome, run: Run) -> None:
        import wandb

        fold = _fold(outcome)
        values = {"eval/fold": fold, **flatten("eval", outcome.metrics.to_json())}
        self.summarize(values)
        # Charts need the numbers to be logged under their names, too.
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        tables = {
            "tables/predictions": wandb.Table(*_prediction_table(outcome)),
            "tables/worst_rows": wandb.Table(*_worst_rows_table(outcome)),
        }
        plots = {f"plots/{file.stem}": wandb.Image(str(file)) for file in sorted(run.plots.glob("*.png"))}
        self.run.log(numbers | tables | plots)
        if self.save_adapter and run.adapter.is_dir():
            facts = {"log_loss": values["eval/log_loss"], "fold": fold}
            artifact = wandb.Artifact(f"adapter-{self.run.id}", type="model", metadata=facts)
            artifact.add_dir(str(run.adapter))
            self.run.log_artifact(artifact)

    def finish(self, *, failed: bool) -> None:
        """Upload the rest, so that another run in this process starts its own."""
        self.run.finish(exit_code=int(failed))


@contextmanager
def start(
    config: Config, run: Run, *, job_type: JobType, sweep: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[Tracker]:
    """Start the tracker that ``logger`` names, and finish it at the end of the block.

    The name of the ``sweep`` becomes the run's group; without one, the runs of a cross-validation form a
    group (see :func:`cross_validation_group`). ``overrides`` become tags (see :func:`select_tags`).
    """
    tracker: WandbTracker | TensorBoardTracker | MlflowTracker
    match config.logger.kind:
        case "none":
            yield NoTracker()
            return
        case "wandb":
            tracker = WandbTracker(config, run, job_type=job_type, sweep=sweep, overrides=overrides)
        case "tensorboard":
            tracker = TensorBoardTracker(config, run)
        case "mlflow":
            tracker = MlflowTracker(
                config, run, config.logger.group or sweep or cross_validation_group(config)
            )
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)


def model_prompt(config: Config) -> str:
    """Return the model and prompt by which the workspace groups runs: ``llama3 v2``."""
    return f"{config.model.name} {config.prompt.name}"


def cross_validation_group(config: Config) -> str:
    """Group name shared by the folds of a cross-validation: a hash of all settings but fold and logger."""
    settings = config.model_dump(mode="json", exclude={"fold", "logger"})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"cv {model_prompt(config)} {digest[:8]}"


def select_tags(overrides: Sequence[str]) -> list[str]:
    """Select the overrides that are useful as wandb tags; paths are left out, as they are private.

    >>> select_tags(["model=llama3", "++train.epochs=2", "data.path=/home/me/train.csv", "logger=wandb"])
    ['model=llama3', 'train.epochs=2']
    """
    plain = [override.lstrip("+~") for override in overrides]
    kept = [override for override in plain if not re.match(r"(logger|hydra|resume|runs?)\b", override)]
    return [tag[:TAG_CHARACTERS] for tag in kept if "/" not in tag and "\\" not in tag]


def _fold(outcome: Outcome) -> int | None:
    """The held-out fold; None if several folds, or rows of no fold, were scored."""
    folds = set(outcome.predictions.folds.tolist())
    return folds.pop() if len(folds) == 1 and min(folds) >= 0 else None


def _prediction_table(outcome: Outcome) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of all predictions with their losses."""
    scored, p = outcome.predictions, outcome.predictions.probabilities.astype(np.float64)
    losses = iter(log_losses(p[scored.labelled], scored.labels[scored.labelled]).tolist())
    outcomes = [(LABELS[k], next(losses)) if k >= 0 else (None, None) for k in scored.labels.tolist()]
    columns = ["id", "fold", *(f"p_{name}" for name in LABELS), "label", "log_loss"]
    rows = zip(scored.ids, scored.folds.tolist(), p.tolist(), outcomes, strict=True)
    return columns, [[id, fold, *each, *outcome] for id, fold, each, outcome in rows]


def _worst_rows_table(outcome: Outcome) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of the rows with the largest loss, with their texts."""
    columns = ["id", "log_loss", "outcome", *(f"p_{name}" for name in LABELS)]
    rows = [
        [row.id, row.loss, row.outcome, *row.probabilities]
        + ["\n\n".join(texts) for texts in zip(*row.turns, strict=True)]
        for row in page.examples(outcome.predictions, outcome.rows)
    ]
    return [*columns, "prompt", "answer_a", "answer_b"], rows


def _mode() -> Literal["online", "offline", "disabled"]:
    """``WANDB_MODE`` if set; else online if an API key is stored, and offline otherwise. Never prompts."""
    match os.environ.get("WANDB_MODE"):
        case "online" | "offline" | "disabled" as mode:
            return mode
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except (wandb.Error, OSError) as error:
        log.warning("the wandb login can't be checked (%s); continuing offline", type(error).__name__)
        return "offline"
