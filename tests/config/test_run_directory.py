"""The run directory: opening, describing, checkpoints and unreadable files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from factories import config

from lmsys_unsloth.config.parsing import parse_config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError


def test_the_file_names_are_those_that_scripts_rely_on() -> None:
    run = Run(Path("RUN"))
    paths = [
        run.config, run.environment, run.data, run.folds, run.training_rows, run.bad_rows, run.samples,
        run.checkpoints, run.training, run.adapter, run.predictions, run.submission, run.metrics, run.report,
        run.plots, run.wandb_id,
    ]  # fmt: skip
    assert [path.relative_to("RUN").as_posix() for path in paths] == [
        "config.yaml", "env.json", "data.json", "folds.csv", "training_rows.csv", "bad_rows.csv",
        "samples.json", "checkpoints", "training.json", "adapter", "predictions.parquet", "submission.csv",
        "metrics.json", "report.html", "plots", "wandb_id",
    ]  # fmt: skip


def test_only_a_run_directory_can_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        Run.open(tmp_path / "missing")
    with pytest.raises(UserError, match=r"not a run directory, it has no config\.yaml"):
        Run.open(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert Run.open(tmp_path) == Run(tmp_path)


def test_a_run_describes_itself(tmp_path: Path) -> None:
    made = config("prompt=v5", "fold=1")
    Run(tmp_path).describe(made, "python train.py prompt=v5 fold=1")
    run = Run.open(tmp_path)
    assert parse_config(run.settings()) == made
    environment = run.environment_description()
    assert environment["command"] == "python train.py prompt=v5 fold=1"
    assert environment["cores"] >= 1 and environment["memory_gib"] > 0
    assert {"torch", "transformers", "trl", "numpy"} <= environment["packages"].keys()


def test_a_run_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    made, run = config(), Run(tmp_path)
    values = made.model_dump(mode="json")
    values["prompt"]["truncation"]["share"] = "longer_first"
    values["model"]["architecture"] = "llama"
    del values["model"]["licence"]
    run.config.write_text(yaml.safe_dump(values))
    read = parse_config(run.settings())
    assert read.model.licence == "not recorded"
    assert read.model_copy(update={"model": made.model}) == made


def test_descriptions_that_were_not_written_are_empty(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.data_description() == run.environment_description() == {}
    assert run.learning_curve() == []


def test_the_learning_curve_is_read_from_the_training_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.training.write_text('{"seconds": 1.5, "learning_curve": [{"step": 1, "loss": 1.1}]}')
    assert run.learning_curve() == [{"step": 1, "loss": 1.1}]


@pytest.mark.parametrize(("content", "problem"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_an_unreadable_description_is_named(tmp_path: Path, content: str, problem: str) -> None:
    run = Run(tmp_path)
    run.data.write_text(content)
    with pytest.raises(UserError, match=rf"data\.json: {problem}.*restore it or score the run again"):
        run.data_description()


def test_a_configuration_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.config.write_text("- a\n")
    with pytest.raises(UserError, match=r"config\.yaml: not a configuration"):
        run.settings()


def test_the_newest_complete_checkpoint_is_used(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (9, 10):
        run.checkpoint(step).mkdir(parents=True)
        run.mark_complete(step, keep=2)
    assert run.can_resume() and run.newest_checkpoint() == 10


def test_newer_incomplete_checkpoints_are_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (2, 4, 6):
        run.checkpoint(step).mkdir(parents=True)
    run.mark_complete(4, keep=2)
    assert run.newest_checkpoint() == 4
    assert sorted(folder.name for folder in run.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_without_a_complete_checkpoint_training_starts_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.can_resume() and run.newest_checkpoint() is None
    run.checkpoint(3).mkdir(parents=True)
    assert run.can_resume() and run.newest_checkpoint() is None
    assert not run.can_resume()


@pytest.mark.parametrize(
    ("names", "stays"), [([".hydra", "train.log"], False), ([".hydra", "config.yaml"], True), ([], True)]
)
def test_a_directory_in_which_a_command_did_nothing_is_removed(
    names: list[str], stays: bool, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    for name in names:
        (run.path / name).touch()
    run.remove_if_unused()
    assert run.path.is_dir() == stays
    Run(tmp_path / "nowhere").remove_if_unused()
