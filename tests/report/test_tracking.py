"""Tracking with wandb never asks a question, never blocks a run and never mixes two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.report import tracking
from lmsys_unsloth.report.results import Outcome

WANDB = "logger=wandb"
Evaluation = tuple[Run, Outcome]


def read_log(run: Run) -> bytes:
    """What an offline run has recorded for its later upload."""
    wandb.teardown()  # a finished run's file is complete once the service has ended
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    return file.read_bytes()


@pytest.mark.slow
def test_an_evaluation_is_published_as_numbers_tables_plots_and_an_artifact(evaluation: Evaluation) -> None:
    run, found = evaluation
    with tracking.start(config(WANDB, "logger.save_adapter=true"), run, job_type="train") as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        tracker.publish(found, run)
        summary, media = tracker.run.summary, Path(tracker.run.dir, "media")
        assert summary["eval/log_loss"] == found.metrics.score.log_loss and summary["eval/fold"] == 0
        assert summary["eval/baselines/class_prior"] and summary["eval/scoring/tokens_per_second"] == 5.0
        table = summary["tables/predictions"]
        assert table["_type"] == "table-file" and table["nrows"] == 30 and table["ncols"] == 7
        assert summary["tables/worst_rows"]["nrows"] == 20
        assert summary["plots/confusion"]["_type"] == "image-file"
    stored = json.loads(next(media.glob("table/tables/predictions*.json")).read_text())
    assert stored["columns"] == ["id", "fold", "p_a", "p_b", "p_tie", "label", "log_loss"]
    p = found.predictions.probabilities[4]
    assert stored["data"][4][0] == "row 4" and stored["data"][4][6] == pytest.approx(-np.log(p[1]), rel=1e-5)
    assert b"adapter_model.safetensors" in read_log(run)


def test_an_adapter_is_uploaded_only_on_request(evaluation: Evaluation) -> None:
    run, found = evaluation
    with tracking.start(config(WANDB), run, job_type="train") as tracker:
        tracker.publish(found, run)
    log = read_log(run)
    assert b"worst_rows" in log and b"adapter_model.safetensors" not in log


def test_tags_are_the_overrides_without_paths() -> None:
    typed = ["model=llama3", "++lora.r=64", "data.path=/home/me/train.csv", "logger=wandb", "runs=[a,b]"]
    assert tracking.select_tags(typed) == ["model=llama3", "lora.r=64"]
    assert len(tracking.select_tags(["prompt.name=" + "x" * 99])[0]) == 64


def test_the_folds_of_a_cross_validation_share_a_group(tmp_path: Path) -> None:
    first, second, other = (
        tracking.cross_validation_group(config(WANDB, *typed))
        for typed in (["fold=0"], ["fold=1"], ["fold=1", "lora.r=8"])
    )
    assert first == second != other and first.startswith("cv smollm2 v1 ")
    with tracking.start(config(WANDB), Run(tmp_path), job_type="eval", overrides=["fold=0"]) as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        assert tracker.run.group == first and tracker.run.tags == ("fold=0",)


def test_without_an_api_key_runs_are_offline(tmp_path: Path) -> None:
    run = Run(tmp_path / "RUN")
    with tracking.start(config(WANDB), run, job_type="train", sweep="a-sweep") as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        assert tracker.run.offline and tracker.run.group == "a-sweep" and tracker.run.job_type == "train"
        assert tracker.run.config["lora"]["r"] == 16
        tracker.log({"train/loss": 1.5}, step=1)
        tracker.summarize({"eval/log_loss": 1.0})
        assert tracker.run.summary["eval/log_loss"] == 1.0
        name = tracker.run.id
    assert (run.path / "wandb_id").read_text() == name
    assert wandb.run is None, "nothing may carry over to the next job"
    with tracking.start(config(WANDB), run, job_type="train") as again:
        assert isinstance(again, tracking.WandbTracker) and again.run.id == name, "a resumed run keeps its id"


def test_each_job_has_a_wandb_run_of_its_own(tmp_path: Path) -> None:
    ids = []
    for job in ("0", "1"):
        with tracking.start(config(WANDB), Run(tmp_path / job), job_type="train") as tracker:
            assert isinstance(tracker, tracking.WandbTracker)
            ids.append(tracker.run.id)
    assert ids[0] != ids[1]


def test_an_unreachable_server_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    ordinary, modes = wandb.init, []

    def init(*arguments: Any, mode: str, **options: Any) -> Any:
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return ordinary(*arguments, mode=mode, **options)

    monkeypatch.setattr(wandb, "init", init)
    with tracking.start(config(WANDB), Run(tmp_path), job_type="eval") as tracker:
        assert isinstance(tracker, tracking.WandbTracker) and tracker.run.offline
    assert modes == ["online", "offline"]


def test_a_failing_job_finishes_its_wandb_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), tracking.start(config(WANDB), Run(tmp_path), job_type="train"):
        raise RuntimeError
    assert wandb.run is None


def test_without_a_logger_nothing_is_written(tmp_path: Path) -> None:
    with tracking.start(config(), Run(tmp_path), job_type="train") as tracker:
        tracker.log({"train/loss": 1.0}, step=1)
        tracker.summarize({})
    assert not list(tmp_path.iterdir())


def test_nested_metrics_have_stable_flat_names() -> None:
    nested = {"log_loss": 0.9, "log_loss_ci": [0.8, 1.0], "baselines": {"uniform": 1.1}}
    flat = tracking.flatten("eval", nested)
    assert json.dumps(flat) == json.dumps(
        {
            "eval/log_loss": 0.9,
            "eval/log_loss_ci/0": 0.8,
            "eval/log_loss_ci/1": 1.0,
            "eval/baselines/uniform": 1.1,
        }
    )
