"""The project's wandb workspace: ``python -m lmsys_unsloth.dashboard [--project NAME] [--entity NAME]``.

It shows cross-validated log loss by model and prompt, calibration, swap bias and speed, from the
names under which :mod:`~lmsys_unsloth.tracking` logs. Running it again makes another saved view.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import wandb
from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports import v2 as wr

NAME = "Which answer do people prefer?"


def workspace(entity: str, project: str) -> ws.Workspace:
    """The workspace, built without a server; ``.save()`` puts it on one.

    Args:
        entity: wandb user or team.
        project: what ``logger.project`` says.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_scores(), _calibration(), _order(), _training()],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config("model_prompt")],
            order=[expr.Ordering(expr.Summary("eval/log_loss"), ascending=True)],
            pinned_columns=[
                f"summary:{name}"
                for name in ("eval/log_loss", "eval/accuracy", "eval/fold", "train/tokens_per_second")
            ],
        ),
    )


def _scores() -> ws.Section:
    baselines = [f"eval/baselines/{name}" for name in ("class_prior", "logistic_regression")]
    return ws.Section(
        name="Score by model and prompt",
        is_open=True,
        panels=[
            _by_model_prompt("Log loss: mean over folds, spread", ["eval/log_loss"]),
            _by_model_prompt("Log loss and its baselines", ["eval/log_loss", *baselines]),
            _by_model_prompt("Accuracy", ["eval/accuracy"]),
            wr.ScatterPlot(
                title="Log loss of each fold",
                x=wr.SummaryMetric("eval/fold"),
                y=wr.SummaryMetric("eval/log_loss"),
            ),
            wr.WeavePanelSummaryTable(table_name="tables/worst_rows"),
        ],
    )


def _calibration() -> ws.Section:
    return ws.Section(
        name="Calibration",
        is_open=True,
        panels=[
            _by_model_prompt("Smooth calibration error", ["eval/smooth_ece"]),
            _by_model_prompt("Fitted temperature (1: as sure as it should be)", ["eval/temperature"]),
            _by_model_prompt(
                "Log loss before and after temperature",
                ["eval/log_loss", "eval/log_loss_after_temperature"],
            ),
            wr.MediaBrowser(media_keys=[f"plots/reliability_{name}" for name in ("a", "b", "tie")]),
        ],
    )


def _order() -> ws.Section:
    return ws.Section(
        name="Does the order of the answers matter? (eval.swap=average)",
        is_open=True,
        panels=[
            _by_model_prompt("Gain from being shown first", ["eval/swap/first_position_bias"]),
            _by_model_prompt("Share of verdicts that flip", ["eval/swap/flips"]),
            wr.MediaBrowser(media_keys=["plots/swap"]),
        ],
    )


def _training() -> ws.Section:
    return ws.Section(
        name="Training and speed",
        is_open=True,
        panels=[
            wr.LinePlot(title="Training loss", x="Step", y=["train/loss"], smoothing_factor=0.6),
            wr.LinePlot(title="Gradient norm", x="Step", y=["train/grad_norm"]),
            _by_model_prompt("Training: tokens per second", ["train/tokens_per_second"]),
            _by_model_prompt("Scoring: tokens per second", ["eval/scoring/tokens_per_second"]),
            _by_model_prompt("Peak memory in training, GB", ["train/peak_memory_gb"]),
            _by_model_prompt("Share of padding in training", ["train/padding_share"]),
        ],
    )


def _by_model_prompt(title: str, metrics: list[str]) -> Any:
    """Bars of final values: mean over the runs of a model and prompt, with their spread."""
    return wr.BarPlot(
        title=title,
        metrics=metrics,
        groupby=wr.Config("model_prompt"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def main(arguments: Sequence[str]) -> None:
    """Save the workspace and print where it is; needs a wandb login."""
    parser = argparse.ArgumentParser(prog="python -m lmsys_unsloth.dashboard", description=__doc__)
    parser.add_argument("--project", default="lmsys_unsloth", help="as in logger.project")
    parser.add_argument("--entity", help="wandb user or team; default: who is logged in")
    options = parser.parse_args(arguments)
    try:
        entity = options.entity or wandb.Api().default_entity
        saved = workspace(entity, options.project).save()
    except (wandb.Error, OSError, ValueError) as error:
        sys.exit(
            f"error: the workspace can't be saved ({error}).\n  Log in with `wandb login`, then try again."
        )
    print(saved.url)
