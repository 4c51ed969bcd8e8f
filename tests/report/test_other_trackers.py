"""TensorBoard and MLflow get the same numbers under the same names, through their own packages."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_text
from lmsys_unsloth.evaluate.metrics import compute_metrics
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.report import tracking
from lmsys_unsloth.report.results import Outcome

tensorboard = pytest.importorskip("tensorboard", reason="needs tensorboard")
mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny")


@pytest.fixture
def outcome() -> Outcome:
    p, labels = np.full((6, 3), 1 / 3), np.arange(6) % 3
    scored = Predictions([str(n) for n in range(6)], np.zeros(6, np.int64), p.astype(np.float32), labels)
    return Outcome(compute_metrics(p, labels), scored, [])


def test_tensorboard_has_losses_by_step_scores_and_the_configuration(
    tmp_path: Path, outcome: Outcome
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path / "run")
    write_text(run.config, "seed: 1\n")
    with tracking.start(config("logger=tensorboard"), run, job_type="train") as tracker:
        for step in (1, 2):
            tracker.log({"train/loss": 1.0 / step}, step=step)
        tracker.publish(outcome, run)
    stored = EventAccumulator(str(run.tensorboard)).Reload()
    assert [(e.step, e.value) for e in stored.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert stored.Scalars("eval/log_loss")[0].value == pytest.approx(np.log(3), abs=1e-6)
    assert "config/text_summary" in stored.Tags()["tensors"]


@pytest.mark.slow
def test_mlflow_has_one_run_which_is_continued(
    tmp_path: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = Run(tmp_path / "run")
    settings = config("logger=mlflow", "logger.tags=[first]")
    for step in (1, 2):
        with tracking.start(settings, run, job_type="train") as tracker:
            tracker.log({"train/loss": 1.0 / step}, step=step)
            tracker.publish(outcome, run)
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("lmsys_unsloth").experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1.0, 0.5]
    assert found.data.metrics["eval/log_loss"] == pytest.approx(np.log(3), abs=1e-6)
    assert found.data.params["model.name"] == "smollm2" and found.data.tags["first"] == "true"
    with pytest.raises(RuntimeError), tracking.start(settings, run, job_type="train"):
        raise RuntimeError
    assert client.get_run(found.info.run_id).info.status == "FAILED"


def test_a_server_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    started = tracking.start(config("logger=mlflow"), Run(tmp_path), job_type="train")
    with pytest.raises(UserError, match=r"nonsense://x can't be used"), started:
        pass


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [("tensorboard", "torch.utils.tensorboard", "tensorboard"), ("mlflow", "mlflow", "mlflow-skinny")],
)
def test_a_missing_package_is_named(
    kind: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(UserError, match=f"needs the package {package}, which is not installed"),
        tracking.start(config(f"logger={kind}"), Run(tmp_path), job_type="train"),
    ):
        pass
