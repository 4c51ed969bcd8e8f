"""Runs of a tiny model as ``train.py`` leaves them, for tests of what ``eval.py`` does with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factories import config

from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.prepare import prepare_training
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.evaluate.scoring import predict_rows
from lmsys_unsloth.report.results import report_scoring
from lmsys_unsloth.report.tracking import NoTracker

ROWS, FOLDS = 30, 3
Lines = list[dict[str, str]]


def settings(path: Path, *overrides: str) -> Config:
    return config(
        "data=lmsys", f"data.path={path / 'train.csv'}", f"data.folds={FOLDS}", "train.max_steps=2",
        "train.learning_rate=0.02", f"model.path={path / 'model'}", "prompt.max_tokens=256",
        "model.first_layer=0", "model.epochs=1", *overrides,
    )  # fmt: skip


def train(settings: Config, run: Run) -> None:
    """What ``train.py`` does."""
    run.describe(settings, "python train.py")
    prepared = prepare_training(settings, run)
    model = trained_model(settings, run, prepared)
    report_scoring(run, settings, prepared, *predict_rows(model, prepared, settings))


def trained_model(settings: Config, run: Run, prepared: Any) -> Any:
    from lmsys_unsloth.train.training import train_or_load

    return train_or_load(settings, run, prepared, NoTracker())


def member(path: Path, name: str = "fold0", *overrides: str) -> Member:
    """A run as ``eval.py`` opens it, with overrides."""
    return Member(Run(path / name), settings(path, f"fold={name[-1]}", *overrides))


def read(path: Path) -> Lines:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def stored_metrics(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.metrics.read_text())
    return found


def validation_ids(path: Path, fold: int = 0) -> list[str]:
    return [line["id"] for line in read(path / f"fold{fold}" / "folds.csv") if int(line["fold"]) == fold]
