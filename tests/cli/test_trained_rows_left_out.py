"""Rows that a run was trained on are left out of its score, under any name, unless asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trained_runs import ROWS, member, read, settings, stored_metrics, train, validation_ids, write

from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.predictions import read_predictions
from lmsys_unsloth.simulate import main as simulate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("change", ["none", "ids", "order of the responses", "white space", "other rows too"])
def test_trained_rows_of_a_copied_file_are_left_out_and_counted(
    folder: Path, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = read(folder / "train.csv")
    kept = set(validation_ids(folder))
    if change == "ids":
        lines = [line | {"id": f"new-{line['id']}"} for line in lines]
        kept = {f"new-{row_id}" for row_id in kept}
    elif change == "order of the responses":
        lines = [swapped(line) for line in lines]
    elif change == "white space":
        lines = [line | {"prompt": line["prompt"].replace(" ", "  ")} for line in lines]
    elif change == "other rows too":
        assert simulate(["rows=4", "seed=1", "length=short", f"out={tmp_path / 'new.csv'}"]) == 0
        new = read(tmp_path / "new.csv")
        lines += new
        kept |= {line["id"] for line in new}
    copy, output = write(tmp_path / "copy.csv", lines), Run(tmp_path / "eval")
    with caplog.at_level("INFO"):
        evaluation.evaluate_run(member(folder, "fold0", f"data.path={copy}"), output)
    assert set(read_predictions(output.predictions).ids) == kept
    left_out = ROWS - len(validation_ids(folder))
    assert f"{left_out} of {len(lines)} rows were used to train" in caplog.text
    assert stored_metrics(output)["trained_rows"] == {"left_out": left_out, "scored": 0}
    assert f"{left_out} labelled rows were not scored" in output.report.read_text()


def swapped(line: dict[str, str]) -> dict[str, str]:
    exchanged = {"a": "b", "b": "a"}
    return {
        name: line[f"{name[:-1]}{exchanged[name[-1]]}"] if name[-2:] in ("_a", "_b") else value
        for name, value in line.items()
    }


def test_any_changed_data_setting_leaves_trained_rows_out(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_run(
        member(folder, "fold0", "data.fold_seed=7", "data.near_duplicate=1"), Run(tmp_path)
    )
    assert list(read_predictions(Run(tmp_path).predictions).ids) == validation_ids(folder)


def test_another_fold_of_the_same_data_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)nothing to score.*eval.trained_rows=include"):
        evaluation.evaluate_run(member(folder, "fold0", "fold=1"), Run(tmp_path))


def test_trained_rows_can_be_included_and_mark_the_report(folder: Path, tmp_path: Path) -> None:
    output = Run(tmp_path)
    evaluation.evaluate_run(member(folder, "fold0", "eval.trained_rows=include"), output)
    assert len(read_predictions(output.predictions)) == ROWS
    trained = ROWS - len(validation_ids(folder))
    assert stored_metrics(output)["trained_rows"] == {"left_out": 0, "scored": trained}
    assert f"{trained} of the {ROWS} scored rows were used to train" in output.report.read_text()


def test_rows_of_extra_data_count_as_trained(folder: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.csv"
    assert simulate(["rows=12", "seed=2", "length=short", f"out={extra}"]) == 0
    run = Run(tmp_path / "RUN")
    with_extra = settings(folder, f"data.extra=[{extra}]")
    train(with_extra, run)
    used = json.loads(run.data.read_text())["extra"][0]["used"]
    assert used > 0
    output, others = Run(tmp_path / "eval"), settings(folder, f"data.path={extra}", "data.extra=[]")
    if used == 12:
        with pytest.raises(UserError, match="nothing to score"):
            evaluation.evaluate_run(Member(run, others), output)
    else:
        evaluation.evaluate_run(Member(run, others), output)
        assert len(read_predictions(output.predictions)) == 12 - used


def test_rows_that_any_of_several_runs_was_trained_on_are_left_out(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    mixed = write(tmp_path / "mixed.csv", [*read(folder / "train.csv"), *read(new_rows)])
    members = [member(folder, f"fold{fold}", f"data.path={mixed}") for fold in (0, 1)]
    evaluation.evaluate_runs(members, Run(tmp_path / "all"))
    assert len(read_predictions(Run(tmp_path / "all").predictions)) == 6
    assert stored_metrics(Run(tmp_path / "all"))["trained_rows"]["left_out"] == ROWS


def test_a_merge_of_runs_that_scored_trained_rows_is_marked(folder: Path, tmp_path: Path) -> None:
    debug = ("debug.evaluate_on_train=true", "debug.train_rows=5")
    for number in (0, 1):
        train(settings(folder, f"seed={number}", *debug), Run(tmp_path / f"RUN{number}"))
    members = [Member(Run(tmp_path / f"RUN{n}"), settings(folder, f"seed={n}", *debug)) for n in (0, 0)]
    evaluation.evaluate_runs(members, Run(tmp_path / "all"))
    assert stored_metrics(Run(tmp_path / "all"))["trained_rows"]["scored"] == 10
