"""wandb never asks, never blocks, never mixes two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from factories import composed

from lmsys_unsloth.config.parsing import Config, parse_config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.predictions import Predictions, with_swap
from lmsys_unsloth.report import tracking
from lmsys_unsloth.report.results import Outcome, report_results


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


def config(*overrides: str) -> Config:
    return parse_config(composed("logger=wandb", *overrides))


def outcome(run: Run) -> Outcome:
    """A small evaluation, concluded in ``run``: metrics, report and plots are written."""
    random = np.random.default_rng(0)
    rows = [
        Comparison(id=f"row {k}", prompts=["q"], responses_a=["<b>x</b>"], responses_b=["y"], label=k % 3)
        for k in range(30)
    ]
    scored = Predictions(
        [row.id for row in rows],
        np.zeros(30, np.int64),
        random.dirichlet(np.ones(3), 30).astype(np.float32),
        np.array([row.label for row in rows]),
    )
    both = with_swap(scored, scored.probabilities[:, [1, 0, 2]])
    run.describe(config(), "python train.py")
    speed = {"scoring": {"tokens_per_second": 5.0, "rows_per_second": 1.0}}
    regression = random.dirichlet(np.ones(3), 30)
    return report_results(run, config(), both, rows, speed, baseline_probabilities=regression)


def test_an_evaluation_becomes_numbers_tables_plots_and_an_artifact(tmp_path: Path) -> None:
    run = Run(tmp_path / "RUN")
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    asked = config("logger.save_adapter=true")
    with tracking.start(asked, run, job_type="train") as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        found = outcome(run)
        tracker.publish(found, run)
        summary, media = tracker.run.summary, Path(tracker.run.dir, "media")
        assert summary["eval/log_loss"] == found.metrics["log_loss"] and summary["eval/fold"] == 0
        assert summary["eval/baselines/class_prior"] and summary["eval/scoring/tokens_per_second"] == 5.0
        table = summary["tables/predictions"]
        assert table["_type"] == "table-file" and table["nrows"] == 30 and table["ncols"] == 7
        assert summary["tables/worst_rows"]["nrows"] == 20
        assert summary["plots/confusion"]["_type"] == "image-file"
    stored = json.loads(next(media.glob("table/tables/predictions*.json")).read_text())
    assert stored["columns"] == ["id", "fold", "p_a", "p_b", "p_tie", "label", "log_loss"]
    p = found.predictions.probabilities[4]
    assert stored["data"][4][0] == "row 4" and stored["data"][4][6] == pytest.approx(-np.log(p[1]), rel=1e-5)
    log = b"".join(file.read_bytes() for file in run.path.glob("wandb/*/*.wandb"))
    assert b"adapter_model.safetensors" in log


def test_an_adapter_is_uploaded_only_when_asked(tmp_path: Path) -> None:
    run = Run(tmp_path / "RUN")
    run.adapter.mkdir(parents=True)
    with tracking.start(config(), run, job_type="train") as tracker:
        tracker.publish(outcome(run), run)
    log = b"".join(file.read_bytes() for file in run.path.glob("wandb/*/*.wandb"))
    assert b"worst_rows" in log and b"adapter_model.safetensors" not in log


def test_tags_come_from_the_command_line_without_paths() -> None:
    typed = ["model=llama3", "++lora.r=64", "data.path=/home/me/train.csv", "logger=wandb", "runs=[a,b]"]
    assert tracking.tags(typed) == ["model=llama3", "lora.r=64"]
    assert len(tracking.tags(["prompt.name=" + "x" * 99])[0]) == 64


def test_the_folds_of_a_cross_validation_share_a_group(tmp_path: Path) -> None:
    first, second, other = (
        tracking.cv_name(config(*typed)) for typed in (["fold=0"], ["fold=1"], ["fold=1", "lora.r=8"])
    )
    assert first == second != other and first.startswith("cv smollm2 v1 ")
    with tracking.start(config(), Run(tmp_path), job_type="eval", overrides=["fold=0"]) as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        assert tracker.run.group == first and tracker.run.tags == ("fold=0",)


def test_without_a_key_it_goes_on_offline(tmp_path: Path) -> None:
    run = Run(tmp_path / "RUN")
    with tracking.start(config(), run, job_type="train", sweep="a-sweep") as tracker:
        assert isinstance(tracker, tracking.WandbTracker)
        assert tracker.run.offline and tracker.run.group == "a-sweep" and tracker.run.job_type == "train"
        assert tracker.run.config["lora"]["r"] == 16
        tracker.log({"train/loss": 1.5}, step=1)
        tracker.summarize({"eval/log_loss": 1.0})
        assert tracker.run.summary["eval/log_loss"] == 1.0
        name = tracker.run.id
    assert (run.path / "wandb_id").read_text() == name
    assert wandb.run is None, "nothing is carried over to the next job"
    with tracking.start(config(), run, job_type="train") as again:
        assert isinstance(again, tracking.WandbTracker) and again.run.id == name, "a resumed run keeps its id"


def test_the_next_job_gets_a_run_of_its_own(tmp_path: Path) -> None:
    ids = []
    for job in ("0", "1"):
        with tracking.start(config(), Run(tmp_path / job), job_type="train") as tracker:
            assert isinstance(tracker, tracking.WandbTracker)
            ids.append(tracker.run.id)
    assert ids[0] != ids[1]


def test_a_server_out_of_reach_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    ordinary, modes = wandb.init, []

    def init(*arguments: Any, mode: str, **options: Any) -> Any:
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return ordinary(*arguments, mode=mode, **options)

    monkeypatch.setattr(wandb, "init", init)
    with tracking.start(config(), Run(tmp_path), job_type="eval") as tracker:
        assert isinstance(tracker, tracking.WandbTracker) and tracker.run.offline
    assert modes == ["online", "offline"]


def test_a_failing_job_closes_its_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), tracking.start(config(), Run(tmp_path), job_type="train"):
        raise RuntimeError
    assert wandb.run is None


def test_no_logger_is_silent(tmp_path: Path) -> None:
    with tracking.start(parse_config(composed()), Run(tmp_path), job_type="train") as tracker:
        tracker.log({"train/loss": 1.0}, step=1)
        tracker.summarize({})
    assert not list(tmp_path.iterdir())


def test_metrics_get_stable_flat_names() -> None:
    nested = {"log_loss": 0.9, "log_loss_ci": [0.8, 1.0], "baselines": {"uniform": 1.1}}
    flat = tracking.flat("eval", nested)
    assert json.dumps(flat) == json.dumps(
        {
            "eval/log_loss": 0.9,
            "eval/log_loss_ci/0": 0.8,
            "eval/log_loss_ci/1": 1.0,
            "eval/baselines/uniform": 1.1,
        }
    )
