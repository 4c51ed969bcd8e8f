"""Experiment tracking: wandb online, offline, or nothing. A server out of reach never stops a run."""

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
from lmsys_unsloth.report.results import Outcome
from lmsys_unsloth.train.metric_logger import MetricLogger

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
FINISH_SECONDS = 300.0
"""A server that went away while a run was going: what is not uploaded by then stays on disk."""

TAG_CHARACTERS = 64  # wandb refuses longer ones
JobType = Literal["train", "eval", "cv"]


class Tracker(MetricLogger, Protocol):
    """Where the numbers of a run go besides its directory."""

    def publish(self, outcome: Outcome, run: Run) -> None:
        """Publish the metrics, tables and plots of an evaluation."""


class NoTracker:
    """``logger=none``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def summarize(self, values: Mapping[str, Any]) -> None:
        pass

    def publish(self, outcome: Outcome, run: Run) -> None:
        pass


class WandbTracker:
    """``logger=wandb``: one wandb run per run directory, resumed under its id."""

    def __init__(
        self,
        config: Config,
        run: Run,
        *,
        job_type: JobType,
        sweep: str | None,
        overrides: Sequence[str],
    ) -> None:
        import wandb

        self.save_adapter = config.logger.save_adapter
        id_file = run.wandb_id
        if not id_file.is_file():
            write_text(id_file, secrets.token_hex(4))
        options: dict[str, Any] = {
            "project": config.logger.project,
            "entity": config.logger.entity,
            "group": config.logger.group or sweep or cv_name(config),
            # None leaves the tags of a resumed run as they are.
            "tags": [*config.logger.tags, *tags(overrides)] or None,
            "job_type": job_type,
            "name": run.path.name,
            "id": id_file.read_text(encoding="utf-8").strip(),
            "resume": "allow",
            "dir": str(run.path),
            "config": {**config.model_dump(mode="json"), "model_prompt": model_prompt(config)},
            # The second job of a sweep in one process would otherwise go on in the first one's run.
            "reinit": "finish_previous",
        }
        settings = wandb.Settings(init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS, silent=True)
        mode = _mode()
        try:
            self.run = wandb.init(mode=mode, settings=settings, **options)
        except (wandb.Error, OSError) as error:
            if mode == "offline":
                raise
            log.warning("wandb can't be reached (%s); going on offline", type(error).__name__)
            self.run = wandb.init(mode="offline", settings=settings, **options)
        if self.run.offline:
            log.info(
                "wandb is offline; upload later with: wandb sync %s", run.path / "wandb" / "offline-run-*"
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def publish(self, outcome: Outcome, run: Run) -> None:
        import wandb

        fold = _fold(outcome)
        values = {"eval/fold": fold, **flat("eval", outcome.metrics)}
        self.summarize(values)
        # Charts know a number by its logged name.
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        plots = {f"plots/{file.stem}": wandb.Image(str(file)) for file in sorted(run.plots.glob("*.png"))}
        self.run.log(
            {
                **numbers,
                "tables/predictions": wandb.Table(*_prediction_table(outcome)),
                "tables/worst_rows": wandb.Table(*_worst_rows_table(outcome)),
                **plots,
            }
        )
        if self.save_adapter and run.adapter.is_dir():
            artifact = wandb.Artifact(
                f"adapter-{self.run.id}",
                type="model",
                metadata={"log_loss": outcome.metrics.get("log_loss"), "fold": fold},
            )
            artifact.add_dir(str(run.adapter))
            self.run.log_artifact(artifact)

    def finish(self, *, failed: bool = False) -> None:
        """Close the run, so that the next job of a sweep starts its own."""
        self.run.finish(exit_code=int(failed))


@contextmanager
def start(
    config: Config,
    run: Run,
    *,
    job_type: JobType,
    sweep: str | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[Tracker]:
    """The tracker that ``logger`` names, closed at the end of the block.

    Args:
        sweep: name of the sweep this run belongs to; the default group. Else the runs of one
            cross-validation make a group (:func:`cv_name`).
        overrides: what was typed on the command line; becomes tags.
    """
    if config.logger.kind == "none":
        yield NoTracker()
        return
    tracker = WandbTracker(config, run, job_type=job_type, sweep=sweep, overrides=overrides)
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()


def model_prompt(config: Config) -> str:
    """What the dashboard compares: ``llama3 v2``."""
    return f"{config.model.name} {config.prompt.name}"


def cv_name(config: Config) -> str:
    """One name for the folds of a cross-validation: the settings without fold and logger decide it."""
    settings = config.model_dump(mode="json", exclude={"fold", "logger"})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"cv {model_prompt(config)} {digest[:8]}"


def tags(overrides: Sequence[str]) -> list[str]:
    """Overrides worth finding a run by, as wandb takes them; no paths, which name a machine's folders.

    >>> tags(["model=llama3", "++train.epochs=2", "data.path=/home/me/train.csv", "logger=wandb"])
    ['model=llama3', 'train.epochs=2']
    """
    plain = [override.lstrip("+~") for override in overrides]
    kept = [override for override in plain if not re.match(r"(logger|hydra|resume|runs?)\b", override)]
    return [tag[:TAG_CHARACTERS] for tag in kept if "/" not in tag and "\\" not in tag]


def _fold(outcome: Outcome) -> int | None:
    """The fold that was held out; None when several folds, or a file of no fold, were scored."""
    folds = set(outcome.predictions.folds.tolist())
    only = folds.pop() if len(folds) == 1 else -1
    return only if only >= 0 else None


def _prediction_table(outcome: Outcome) -> tuple[list[str], list[list[Any]]]:
    """Columns and lines: every predicted row with its loss."""
    scored, p = outcome.predictions, outcome.predictions.probabilities.astype(np.float64)
    loss: list[float | None] = [None] * len(scored)
    where = np.flatnonzero(scored.labelled)
    for row, value in zip(where.tolist(), log_losses(p[where], scored.labels[where]).tolist(), strict=True):
        loss[row] = value
    names = [None if label < 0 else LABELS[label] for label in scored.labels.tolist()]
    lines = zip(scored.ids, scored.folds.tolist(), *p.T.tolist(), names, loss, strict=True)
    return ["id", "fold", *(f"p_{name}" for name in LABELS), "label", "log_loss"], [list(x) for x in lines]


def _worst_rows_table(outcome: Outcome) -> tuple[list[str], list[list[Any]]]:
    """Columns and lines: the rows that the report shows as most costly, with their texts."""
    columns = ["id", "log_loss", "outcome", *(f"p_{name}" for name in LABELS)]
    lines = [
        [row.id, row.loss, row.outcome, *row.probabilities]
        + ["\n\n".join(texts) for texts in zip(*row.turns, strict=True)]
        for row in page.examples(outcome.predictions, outcome.rows)
    ]
    return [*columns, "prompt", "answer_a", "answer_b"], lines


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested numbers under stable flat names; lists become ``/0``, ``/1``.

    >>> flat("eval", {"log_loss": 0.9, "ci": [0.8, 1.0], "baselines": {"uniform": 1.1}})
    {'eval/log_loss': 0.9, 'eval/ci/0': 0.8, 'eval/ci/1': 1.0, 'eval/baselines/uniform': 1.1}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            value = dict(zip(map(str, range(len(value))), value, strict=True))
        result |= (
            flat(f"{prefix}/{name}", value) if isinstance(value, Mapping) else {f"{prefix}/{name}": value}
        )
    return result


def _mode() -> Literal["online", "offline", "disabled"]:
    """``WANDB_MODE`` if set; else online when a key is stored, and offline, without a question, when not."""
    match os.environ.get("WANDB_MODE"):
        case "online" | "offline" | "disabled" as mode:
            return mode
    import wandb

    try:
        logged_in = wandb.login(prompt=False)
    except (wandb.Error, OSError) as error:
        log.warning("wandb login can't be checked (%s); going on offline", type(error).__name__)
        return "offline"
    return "online" if logged_in else "offline"
