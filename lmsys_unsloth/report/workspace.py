"""The project's wandb workspace: ``python -m lmsys_unsloth.dashboard [--project NAME] [--entity NAME]``.

It shows cross-validated log loss by model and prompt, calibration, position bias and speed, under the
names that :mod:`lmsys_unsloth.report.tracking` logs. Each call saves another view.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports import v2 as wr

from lmsys_unsloth.data.comparison import LABELS

NAME = "Which answer do people prefer?"
"""Title of the workspace."""


def build_workspace(entity: str, project: str) -> ws.Workspace:
    """Build the workspace without contacting a server; its ``save()`` uploads it.

    Args:
        entity: wandb user or team.
        project: value of ``logger.project``.
    """
    columns = ("eval/log_loss", "eval/accuracy", "eval/fold", "train/tokens_per_second")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=list(p), is_open=True) for name, p in _panels().items()],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config("model_prompt")],
            order=[expr.Ordering(expr.Summary("eval/log_loss"), ascending=True)],
            pinned_columns=[f"summary:{name}" for name in columns],
        ),
    )


def _panels() -> dict[str, tuple[Any, ...]]:
    """The panels of each section."""
    baselines = [f"eval/baselines/{name}" for name in ("class_prior", "logistic_regression", "form")]
    fold, loss = wr.SummaryMetric("eval/fold"), wr.SummaryMetric("eval/log_loss")
    scaled = tuple(f"eval/adjusted/{name}/log_loss" for name in ("raw", "temperature", "stack"))
    return {
        "Score by model and prompt": (
            _bars("Log loss: mean and standard deviation over folds", "eval/log_loss"),
            _bars("Log loss and baselines", "eval/log_loss", *baselines),
            _bars("Accuracy", "eval/accuracy"),
            wr.ScatterPlot(title="Log loss of each fold", x=fold, y=loss),
            wr.WeavePanelSummaryTable(table_name="tables/worst_rows"),
        ),
        "Calibration": (
            _bars("Smooth calibration error", "eval/smooth_ece"),
            _bars("Temperature (above 1: overconfident, below 1: underconfident)", "eval/temperature"),
            _bars("Log loss of raw, calibrated and stacked predictions", *scaled),
            wr.MediaBrowser(media_keys=[f"plots/reliability_{name}" for name in LABELS]),
        ),
        "Effect of the order of the responses (with eval.swap=average)": (
            _bars("Gain in probability from being in first position", "eval/swap/first_position_bias"),
            _bars("Share of rows whose predicted outcome changes", "eval/swap/flips"),
            wr.MediaBrowser(media_keys=["plots/swap"]),
        ),
        "Training and speed": (
            wr.LinePlot(title="Training loss", x="Step", y=["train/loss"], smoothing_factor=0.6),
            wr.LinePlot(title="Gradient norm", x="Step", y=["train/grad_norm"]),
            _bars("Training: tokens per second", "train/tokens_per_second"),
            _bars("Scoring: tokens per second", "eval/scoring/tokens_per_second"),
            _bars("Peak memory in training, GB", "train/peak_memory_gb"),
            _bars("Share of padding in training", "train/padding_share"),
        ),
    }


def _bars(title: str, *metrics: str) -> wr.BarPlot:
    """Final values for each model and prompt: mean over the runs, with their standard deviation."""
    return wr.BarPlot(
        title=title,
        metrics=list(metrics),
        groupby=wr.Config("model_prompt"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def main(arguments: Sequence[str]) -> None:
    """Save the workspace and print its address; requires a wandb login."""
    description = "Save the project's wandb workspace; each call saves another view."
    parser = argparse.ArgumentParser(prog="python -m lmsys_unsloth.dashboard", description=description)
    parser.add_argument("--project", default="lmsys_unsloth", help="value of logger.project")
    parser.add_argument("--entity", help="wandb user or team; default: the user who is logged in")
    options = parser.parse_args(arguments)
    try:
        entity = options.entity or wandb.Api().default_entity
        saved = build_workspace(entity, options.project).save()
    except (wandb.Error, WandbApiFailedError, OSError, ValueError) as error:
        sys.exit(
            f"error: the workspace can't be saved ({str(error).strip()}).\n  Log in with `wandb login` as a "
            "user who may write to the project, then try again."
        )
    print(saved.url)
