"""The GPU benchmark with tiny models on a CPU, where its numbers mean nothing; the study without training."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import study_report
import study_runs
from factories import config
from scipy.special import softmax

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.dataset import load_fold
from lmsys_unsloth.data.trained_rows import save_trained_rows
from lmsys_unsloth.evaluate import baselines, predictions
from lmsys_unsloth.evaluate.metrics import score_predictions

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_step(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(tmp_path), "--models",
        "gemma2", "--ranks", "4", "--rows", "24", "--batches", "2", "--engines", "stock", "lmsys_unsloth",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (case,) = json.loads(next(tmp_path.glob("gpu-*.json")).read_text())["cases"]
    assert case["engines"].keys() == {"stock", "lmsys_unsloth"} and "failed" not in json.dumps(case), case
    assert case["engines"]["lmsys_unsloth"]["parity"]["hidden_states"] < 0.05
    assert "gemma2 | 4 | training | lmsys_unsloth" in next(tmp_path.glob("gpu-*.md")).read_text()


@pytest.mark.slow
def test_every_arm_and_data_set_of_the_study_is_a_valid_configuration(tmp_path: Path) -> None:
    study = study_runs.load_study()
    arms = study_runs.list_jobs(study, ["arena"], list(study.arms), [3], None, None)
    for job in arms + study_runs.list_jobs(study, list(study.sets), [study_runs.BASE], [3], None, tmp_path):
        parsed = config(*job.overrides)
        assert parsed.seed == 3 and parsed.data.folds == study_runs.FOLDS
        assert parsed.fold == 0 or job.arm == study_runs.BASE  # the other folds of the teacher
        file = study.sets[job.data_set].file
        assert parsed.data.path == (str(tmp_path / file) if file else None)


def test_the_overrides_of_an_arm_replace_those_of_its_data_set_and_of_the_base() -> None:
    study = study_runs.Study(
        ["train.epochs=3", "lora=r64"],
        {"arena": study_runs.DataSet(None, [0, 1], ["prompt.max_tokens=256", "train.epochs=2"])},
        {"short": study_runs.Arm("?", ["prompt.max_tokens=128", "lora=none"])},
    )
    jobs = study_runs.list_jobs(study, ["arena"], ["short"], [7], None, None)
    assert [str(job.folder) for job in jobs] == ["arena/short/7-0", "arena/short/7-1"]
    expected = ["train.epochs=2", "lora=none", "data.seed=7", "prompt.max_tokens=128", "seed=7", "fold=1"]
    assert jobs[1].overrides == expected


def _tiny_study() -> study_runs.Study:
    arms = {"base": study_runs.Arm("?", []), "rank_4": study_runs.Arm("Which rank?", ["lora.r=4"])}
    return study_runs.Study(["data.rows=60"], {"arena": study_runs.DataSet(None, [0], [])}, arms)


def _finish(job: study_runs.Job, output: Path, noise: float) -> None:
    """Write what a run leaves behind; the predictions are the true probabilities with noise on the logits."""
    run = Run(output / job.folder)
    parsed = config(*job.overrides)
    fold = load_fold(parsed.data, job.fold, run)
    save_trained_rows(run.training_rows, fold.train)
    truth = np.array([row.true_probabilities for row in fold.validation])
    random = np.random.default_rng(job.seed).normal(0, noise, truth.shape)
    predicted = predictions.Predictions(
        [row.id for row in fold.validation],
        np.full(len(truth), job.fold),
        softmax(np.log(truth) + random, axis=1).astype(np.float32),
        predictions.label_array(fold.validation),
        {"group": [str(group) for group in fold.groups]},
    )
    regression = baselines.logistic_regression(fold.train, fold.validation)
    metrics = score_predictions(predicted, baseline_probabilities=regression)
    predictions.write_predictions(run.predictions, predicted)
    write_json(run.metrics, metrics.to_json())
    write_json(run.training, {"seconds": 12.0})
    run.describe(parsed, "python train.py")
    write_json(run.path / study_runs.RECORD, dataclasses.asdict(job) | {"exit_status": 0})


@pytest.mark.slow
def test_the_report_of_a_study_compares_finished_runs_and_lists_failed_ones(tmp_path: Path) -> None:
    study = _tiny_study()
    *finished, failed = study_runs.list_jobs(study, ["arena"], list(study.arms), [0, 1], None, None)
    for job in finished:  # base and rank_4 with seed 0, base with seed 1
        _finish(job, tmp_path, noise=2.0 if job.arm == "base" else 0.0)
    write_json(tmp_path / failed.folder / study_runs.RECORD, dataclasses.asdict(failed) | {"exit_status": 2})
    (tmp_path / failed.folder / study_runs.LOG).write_text("training\nerror: no memory\n")

    (base, arm) = study_report.compare_arms(study_report.read_runs(study, tmp_path)[0])
    assert (len(base.runs), base.from_base, arm.runs_paired) == (2, None, 1)
    assert arm.from_base is not None and arm.from_base.difference < 0
    losses = [run.metrics["log_loss"] for run in (arm.runs[0], base.runs[0])]
    assert arm.from_base.difference == pytest.approx(losses[0] - losses[1])
    recorded = [run.metrics["against_logistic_regression"]["difference"] for run in arm.runs]
    assert [arm.from_regression.difference] == pytest.approx(recorded)

    study_report.write_report(study, tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "error: no memory" in text and "| rank_4 | 1 |" in text and f"{losses[0]:.3f}" in text
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_skips_finished_runs_and_refuses_other_settings(tmp_path: Path) -> None:
    job = study_runs.list_jobs(_tiny_study(), ["arena"], ["base"], [0], None, None)[0]
    write_json(tmp_path / job.folder / study_runs.RECORD, dataclasses.asdict(job) | {"exit_status": 0})
    assert study_runs.run_job(job, tmp_path, threads=1) == 0
    assert not (tmp_path / job.folder / study_runs.LOG).exists()
    study_runs.check_records([job], tmp_path)
    with pytest.raises(SystemExit, match=r"lora\.r=4"):
        study_runs.check_records([dataclasses.replace(job, overrides=[*job.overrides, "lora.r=4"])], tmp_path)


def test_a_student_is_trained_on_the_merged_folds_of_its_teacher(tmp_path: Path) -> None:
    study = _tiny_study()
    study.arms["student"] = study_runs.Arm("?", ["train.teacher_weight=0.5"], teacher="base")
    jobs = study_runs.list_jobs(study, ["arena"], ["student", "base"], [3], None, None)
    assert [str(job.folder) for job in jobs] == [
        *(f"arena/base/3-{fold}" for fold in range(5)), "arena/student/3-0",
    ]  # fmt: skip
    assert [job.teacher for job in jobs] == [None] * 5 + ["base"]
    base = tmp_path.resolve() / "arena" / "base"
    merge, train = study_runs.list_commands(jobs[-1], tmp_path)
    runs = ",".join(str(base / f"3-{fold}") for fold in range(5))
    assert merge == [
        "eval.py", f"runs=[{runs}]", "debug.validation_rows=null", f"hydra.run.dir={base / '3-folds'}",
    ]  # fmt: skip
    assert train[0] == "train.py" and train[-1] == f"data.soft_labels={base / '3-folds'}"
    write_json(base / "3-folds" / "metrics.json", {})
    assert study_runs.list_commands(jobs[-1], tmp_path) == [train]
    assert study_runs.list_commands(jobs[0], tmp_path)[0][:2] == ["train.py", "data.rows=60"]


def test_a_student_of_unfinished_folds_fails_before_training(tmp_path: Path) -> None:
    job = study_runs.Job("arena", "student", 0, 0, ["data.rows=60"], teacher="base")
    assert study_runs.run_job(job, tmp_path, threads=1) == 2
    assert "0-0" in study_runs.describe_failure(tmp_path / job.folder)
    assert not Run(tmp_path / job.folder).config.exists()


def test_a_teacher_must_be_an_arm_without_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "base: []\nsets: {}\narms: {question: {base: [], one: {teacher: base, overrides: []}, "
        "two: {teacher: one, overrides: []}}}\n"
    )
    with pytest.raises(SystemExit, match="two: teacher: one: must be an arm that has no teacher itself"):
        study_runs.load_study(tmp_path / "study.yaml")


def test_a_failed_run_of_a_study_is_recorded(tmp_path: Path) -> None:
    job = study_runs.Job("arena", "base", 0, 0, ["lora.r=0"])
    assert study_runs.run_job(job, tmp_path, threads=1) == 2
    assert study_runs.read_record(tmp_path / job.folder) == (job, 2)
    assert "lora.r" in study_runs.describe_failure(tmp_path / job.folder)
