"""The table of a sweep: scores over folds, paired differences, what is missing, and the page."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from factories import composed

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json, write_text
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import Predictions, write_predictions
from lmsys_unsloth.sweep.__main__ import main
from lmsys_unsloth.sweep.figures import plot_sweep
from lmsys_unsloth.sweep.jobs import Job, save_jobs
from lmsys_unsloth.sweep.report import write_report
from lmsys_unsloth.sweep.summary import summarise

ROWS = 40


def job(folder: Path, rank: int, fold: int, *words: str) -> Job:
    return Job(
        name=f"r{rank}-fold{fold}", id=f"{rank}-{fold}", configuration=f"c{rank}", fold=fold, folds=2,
        overrides=(f"lora.r={rank}", f"fold={fold}", *words), sweep=str(folder),
    )  # fmt: skip


def finish(job: Job, confidence: float, fingerprint: str = "same", loss: float | None = None) -> Predictions:
    """Write the files of a finished job whose model is as sure of the true outcome as ``confidence`` says."""
    ids = [f"{job.fold}-{n}" for n in range(ROWS)]
    labels = np.arange(ROWS) % 3
    p = np.full((ROWS, 3), (1 - confidence) / 2)
    p[np.arange(ROWS), labels] = confidence
    p[::7] = 1 / 3
    groups = [f"{job.fold}-{n // 2}" for n in range(ROWS)]
    predicted = Predictions(ids, np.full(ROWS, job.fold), p.astype(np.float32), labels, {"group": groups})
    write_predictions(job.run.predictions, predicted)
    write_text(job.run.config, yaml.safe_dump(composed(f"fold={job.fold}")))
    write_json(job.run.data, {"fingerprint": fingerprint})
    write_json(job.run.training, {"peak_memory_gb": 2.0 + job.fold, "tokens_per_second": 100.0 + job.fold})
    write_json(job.run.metrics, {})
    write_text(job.run.report, "")
    if loss is not None:
        write_json(
            job.run.evaluations,
            [{"step": 1, "early_stopping_loss": 9.0}, {"step": 2, "early_stopping_loss": loss}],
        )
    job.note(state="finished", seconds=90.0)
    return predicted


def mean_loss(*parts: Predictions) -> float:
    return float(
        np.concatenate([log_losses(p.probabilities.astype(np.float64), p.labels) for p in parts]).mean()
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Rank 4 and 8 with both folds, rank 16 with one fold and a failure, rank 32 not begun."""
    jobs = {(rank, fold): job(tmp_path, rank, fold) for rank in (4, 8, 16, 32) for fold in (0, 1)}
    for rank, confidence in ((4, 0.5), (8, 0.7)):
        for fold in (0, 1):
            finish(jobs[rank, fold], confidence)
    finish(jobs[16, 0], 0.9)
    jobs[16, 1].run.path.mkdir()
    jobs[16, 1].note(state="failed", error="<b>out of memory</b>", seconds=6.0)
    save_jobs(tmp_path, list(jobs.values()), ["lora.r=4,8,16,32", "fold=0,1"])
    return tmp_path


def test_configurations_are_scored_over_their_folds_and_compared_row_by_row(sweep: Path) -> None:
    best, second, half, none = summarise(sweep)
    assert [dict(line.values) for line in (best, second, half, none)] == [
        {"lora.r": r} for r in (8, 4, 16, 32)
    ]
    eight, four = ([finish(job(sweep, rank, f), c) for f in (0, 1)] for rank, c in ((8, 0.7), (4, 0.5)))
    assert best.log_loss == pytest.approx(mean_loss(*eight))
    assert best.log_loss_ci is not None and best.log_loss_ci[0] < best.log_loss < best.log_loss_ci[1]
    assert best.from_best is None and second.from_best is not None
    assert second.from_best.difference == pytest.approx(mean_loss(*four) - mean_loss(*eight))
    assert (best.rows, best.scored_folds, best.minutes) == (2 * ROWS, (0, 1), 3.0)
    assert (best.peak_memory_gb, best.tokens_per_second) == (3.0, 100.5)
    assert best.command == "python train.py lora.r=8 cv=2"


def test_what_is_missing_or_failed_is_told_and_comes_last(sweep: Path) -> None:
    *_, half, none = summarise(sweep)
    assert half.scored_folds == (0,) and half.states == {"finished": 1, "failed": 1} and not half.complete
    assert half.log_loss is not None and half.log_loss < summarise(sweep)[0].log_loss  # type: ignore[operator]
    assert half.from_best is not None and half.from_best.difference < 0  # on the 40 rows of fold 0
    assert half.errors == ("<b>out of memory</b>",)
    assert none.log_loss is None and none.states == {"waiting": 2}


def test_the_page_and_the_table_hold_every_configuration_and_no_markup_of_others(sweep: Path) -> None:
    write_report(sweep)
    page = (sweep / "sweep.html").read_text()
    assert "<b>out of memory</b>" not in page and "&lt;b&gt;out of memory" in page
    assert "python train.py lora.r=4 cv=2" in page and page.count("<svg") == 2 and "<script" not in page
    with (sweep / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["lora.r"] for line in lines] == ["8", "4", "16", "32"]
    assert lines[2]["state"] == "1 finished, 1 failed" and lines[3]["log_loss"] == ""


def test_a_search_orders_by_the_loss_it_minimised(tmp_path: Path) -> None:
    jobs = [job(tmp_path, rank, 0) for rank in (4, 8)]
    finish(jobs[0], 0.9, loss=1.2)
    finish(jobs[1], 0.6, loss=1.1)
    save_jobs(tmp_path, jobs, ["search=default"], "early_stopping")
    first, second = summarise(tmp_path)
    assert (first.values["lora.r"], first.early_stopping_loss) == (8, 1.1)
    assert first.log_loss > second.log_loss  # type: ignore[operator]


def test_a_data_file_that_changed_between_jobs_is_refused(sweep: Path) -> None:
    finish(job(sweep, 8, 1), 0.7, fingerprint="other")
    with pytest.raises(UserError, match="changed between these jobs"):
        summarise(sweep)


def test_the_command_reports_at_any_time_and_refuses_other_folders(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert "1 failed" in printed and "2 waiting" in printed and "sweep.html" in printed
    assert main([str(sweep / "r4-fold0")]) == 2
    assert "not a sweep directory" in capsys.readouterr().err


def test_figures_show_numbers_by_size_and_need_two_configurations(sweep: Path) -> None:
    lines = summarise(sweep)
    assert list(plot_sweep(lines)) == ["parallel", "effect_0"]
    assert plot_sweep(lines[:1]) == {}
    axes = plot_sweep(lines)["effect_0"][1].axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "8", "16"]


def run_directory(path: Path, confidence: float, *overrides: str, fold: int = 0) -> Path:
    """A finished run that no sweep started."""
    finish(Job(path.name, "", "", fold, 2, (), str(path.parent)), confidence)
    (path / "job.json").unlink()
    settings = composed(f"fold={fold}", "data.folds=2", *overrides)
    write_text(path / "config.yaml", yaml.safe_dump(settings))
    write_json(path / "env.json", {"command": f"python train.py fold={fold} {' '.join(overrides)}"})
    write_json(path / "training.json", {"seconds": 60.0})
    (path / "adapter").mkdir()
    return path


def test_runs_that_no_sweep_started_are_compared(tmp_path: Path) -> None:
    """Folds of the same settings are one configuration; only settings that differ are listed."""
    first = [run_directory(tmp_path / f"a{fold}", 0.5, fold=fold) for fold in (0, 1)]
    second = [run_directory(tmp_path / f"b{fold}", 0.7, "lora.r=4", fold=fold) for fold in (0, 1)]
    again = run_directory(tmp_path / "again", 0.6, fold=0)
    out = tmp_path / "out"
    assert main([*map(str, [*first, *second, again]), "--output", str(out)]) == 0
    best, repeated, worst = sorted(summarise(out), key=lambda line: line.log_loss or 0)
    assert [dict(line.values) for line in (best, worst, repeated)] == [
        {"lora.r": 4}, {"lora.r": 16}, {"lora.r": 16},
    ]  # fmt: skip
    assert (best.rows, worst.rows, repeated.rows) == (2 * ROWS, 2 * ROWS, ROWS)
    assert (best.minutes, best.complete) == (2.0, True)
    assert best.command == "python train.py fold=0 lora.r=4\npython train.py fold=1 lora.r=4"
    assert worst.from_best is not None and worst.from_best.difference > 0
    assert "python train.py fold=0 lora.r=4" in (out / "sweep.html").read_text()
    assert main([str(out)]) == 0  # again, at any time


def test_prompts_and_models_are_listed_by_name(tmp_path: Path) -> None:
    """A name that stands for two things gets a number."""
    words = (("prompt=v1",), ("prompt=v2", "prompt.max_tokens=2048"), ("prompt=v1", "prompt.system=Judge."))
    runs = [run_directory(tmp_path / f"r{n}", 0.5 + n / 10, *each) for n, each in enumerate(words)]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    lines = sorted(summarise(tmp_path / "out"), key=lambda line: line.runs)
    assert [dict(line.values) for line in lines] == [
        {"prompt.name": "v1"}, {"prompt.name": "v2"}, {"prompt.name": "v1 (2)"},
    ]  # fmt: skip
    assert [line.runs for line in lines] == [(str(run),) for run in runs]


def test_a_cross_validation_stands_for_its_runs(tmp_path: Path) -> None:
    folds = [run_directory(tmp_path / f"a{fold}", 0.5, fold=fold) for fold in (0, 1)]
    other = run_directory(tmp_path / "b", 0.6, "seed=1")
    merged = tmp_path / "cv"
    write_text(merged / "config.yaml", (folds[0] / "config.yaml").read_text())
    write_json(merged / "data.json", {"runs": [str(fold) for fold in folds]})
    assert main([str(merged), str(other), "--output", str(tmp_path / "out")]) == 0
    assert {line.scored_folds for line in summarise(tmp_path / "out")} == {(0,), (0, 1)}


def test_one_run_and_folders_that_are_none_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path / "a", 0.5)
    assert main([str(run), str(run), "--output", str(tmp_path / "out")]) == 2
    assert "name at least two" in capsys.readouterr().err
    assert main([str(run), str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "no such run directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_comparison_does_not_replace_a_sweep(
    sweep: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = tmp_path_factory.mktemp("runs"), (sweep / "sweep.json").read_bytes()
    runs = [str(run_directory(folder / name, 0.5)) for name in ("a", "b")]
    assert main([*runs, "--output", str(sweep)]) == 2
    assert "holds a sweep" in capsys.readouterr().err
    assert (sweep / "sweep.json").read_bytes() == before
