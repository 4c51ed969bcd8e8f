"""The study's runs, report and comparison of logit scales, without training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import logit_scale
import numpy as np
import pytest
import study_report
import study_runs
from factories import config
from scipy.special import softmax

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import label_array
from lmsys_unsloth.data.dataset import load_fold
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import fit_form
from lmsys_unsloth.data.trained_rows import save_trained_rows
from lmsys_unsloth.evaluate import predictions
from lmsys_unsloth.evaluate.baselines import fit_baseline
from lmsys_unsloth.evaluate.metrics import score_predictions


def test_every_arm_and_data_set_of_the_study_is_a_valid_configuration(tmp_path: Path) -> None:
    study = study_runs.load_study()
    teachers = {arm.teacher for arm in study.arms.values()} - {None}
    arms = study_runs.list_jobs(study, ["arena"], list(study.arms), [3], None, None)
    for job in arms + study_runs.list_jobs(study, list(study.sets), [study_runs.BASE], [3], None, tmp_path):
        parsed = config(*job.overrides)
        assert parsed.seed == 3 and parsed.data.folds == study_runs.FOLDS
        assert parsed.fold == 0 or job.arm in teachers  # the other folds of a teacher
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
        label_array(fold.validation),
        {"group": [str(group) for group in fold.groups]},
    )
    train, labels = form_features(fold.train), label_array(fold.train)
    for columns, fit in ((predictions.BASELINE_COLUMNS, fit_baseline), (predictions.FORM_COLUMNS, fit_form)):
        found = fit(train, labels).predict_form(form_features(fold.validation))
        predicted = predictions.with_columns(predicted, columns, found)
    metrics = score_predictions(predicted)
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

    (base, arm) = study_report.compare_arms(study_report.read_runs(study, tmp_path)[0], "base")
    assert (len(base.runs), base.from_reference, arm.runs_paired) == (2, None, 1)
    assert arm.from_reference is not None and arm.from_reference.difference < 0
    losses = [run.metrics["log_loss"] for run in (arm.runs[0], base.runs[0])]
    assert arm.from_reference.difference == pytest.approx(losses[0] - losses[1])
    for found, name in ((arm.from_baseline, "logistic_regression"), (arm.from_form, "form")):
        recorded = [run.metrics[f"against_{name}"]["difference"] for run in arm.runs]
        assert [found.difference] == pytest.approx(recorded)

    study_report.write_report(study, tmp_path, "base")
    text = (tmp_path / "study.md").read_text()
    assert "error: no memory" in text and "| rank_4 | 1 |" in text and f"{losses[0]:.3f}" in text
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")

    (base, arm) = study_report.compare_arms(study_report.read_runs(study, tmp_path)[0], "rank_4")
    assert arm.from_reference is None and base.from_reference is not None
    assert base.from_reference.difference == pytest.approx(losses[1] - losses[0])


@pytest.mark.slow
def test_other_scales_of_the_logits_are_scored_from_stored_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job,) = study_runs.list_jobs(_tiny_study(), ["arena"], ["base"], [0], None, None)
    _finish(job, tmp_path, noise=0.0)
    run = Run(tmp_path / job.folder)
    with pytest.raises(SystemExit, match="scored in both orders"):
        logit_scale.main([str(run.path)])
    stored = predictions.read_predictions(run.predictions)
    form_only = predictions.stored_columns(stored, predictions.FORM_COLUMNS)
    assert form_only is not None
    learned = np.random.default_rng(0).normal(size=(2, *form_only.shape))  # each order its own logits
    forward, back = softmax(np.log(form_only) + 0.8 * learned, axis=2)
    both = dataclasses.replace(stored, probabilities=forward.astype(np.float32))
    predictions.write_predictions(run.predictions, predictions.with_swap(both, back[:, [1, 0, 2]]))
    write_json(run.training, {"seconds": 12.0, "logit_scale": 0.8})

    assert logit_scale.main([str(run.path), "--half-rows", "0,48"]) == 0
    *_, of_set, mean = capsys.readouterr().out.splitlines()
    name, runs, rows, *losses = of_set.strip("| ").split(" | ")
    assert (name, runs, rows) == ("arena", "1", "48") and mean.startswith("| mean |")

    def expected(scale: float) -> float:
        found = softmax(np.log(form_only) + scale * learned, axis=2).mean(axis=0)
        return float(-np.log(found[np.arange(len(found)), stored.labels]).mean())

    assert [float(loss) for loss in losses[:3]] == pytest.approx(
        [expected(0.0), expected(1.0), expected(0.5)], abs=2e-4
    )
    assert float(losses[3]) <= min(map(float, losses[:3]))


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


def test_an_arm_like_another_has_its_overrides_first(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "base: []\nsets: {}\narms: {question: {base: [], one: [lora.r=4], "
        "two: {like: one, overrides: [lora.r=8]}, three: {teacher: one, overrides: [lora.r=2]}}}\n"
    )
    arms = study_runs.load_study(tmp_path / "study.yaml").arms
    assert arms["two"] == study_runs.Arm("question", ["lora.r=4", "lora.r=8"])
    assert arms["three"] == study_runs.Arm("question", ["lora.r=2"], teacher="one")


def test_a_failed_run_of_a_study_is_recorded(tmp_path: Path) -> None:
    job = study_runs.Job("arena", "base", 0, 0, ["lora.r=0"])
    assert study_runs.run_job(job, tmp_path, threads=1) == 2
    assert study_runs.read_record(tmp_path / job.folder) == (job, 2)
    assert "lora.r" in study_runs.describe_failure(tmp_path / job.folder)
