"""Every experiment composes and trains; those of published systems say what they are."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from factories import CONF, REPOSITORY, composed, config
from hydra import compose, initialize_config_dir
from tiny import save_tiny_llama

from lmsys_unsloth.cli.prepare import prepare_training
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.report.tracking import NoTracker

NAMES = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
PUBLISHED = [name for name in NAMES if name != "best"]  # which is this project's own
SMOLLM2_LAYERS = 30


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def text(name: str) -> str:
    return (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_experiment_is_short_and_names_source_score_and_differences(name: str) -> None:
    lines = text(name).splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    assert len(lines) <= 20
    assert re.search(r"log loss [01]\.\d{3}|no log loss published", header)
    assert "Published: " in header and "Differs: " in header
    assert "LMSYS" in header or "WSDM" in header or "leaderboard" in header


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_experiment_fits_its_own_model_and_the_smallest(name: str) -> None:
    own, small = config(f"experiment={name}"), config(f"experiment={name}", "model=smollm2")
    assert own.model.name in ("llama3", "gemma2") and small.model.name == "smollm2"
    assert small.lora.first_layer < SMOLLM2_LAYERS
    ignored = {"model": True, "train": True, "lora": {"first_layer"}}  # defaults of some keys are the model's
    assert own.model_dump(exclude=ignored) == small.model_dump(exclude=ignored)


def test_an_experiment_can_be_scored_without_training() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("eval", ["experiment=toda_zero_shot"]).prompt.name == "v1"


def test_the_document_lists_every_experiment_with_its_score() -> None:
    rows = (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8").splitlines()
    listed = {match[1]: row for row in rows if (match := re.match(r"\| `(\w+)`", row))}
    assert sorted(listed) == PUBLISHED
    for name, row in listed.items():
        score = re.search(r"\b[01]\.\d{3,4}\b", text(name).splitlines()[1])
        assert (score[0] if score else "none published") in row, name


def tiny_settings(name: str, folder: Path) -> Config:
    """The experiment on a tiny model of two layers and 12 rows."""
    first_layer = min(composed(f"experiment={name}")["lora"]["first_layer"], 1)
    return config(
        f"experiment={name}", "model=smollm2", f"model.path={folder}", "model.load_in_4bit=false",
        "model.dtype=float32", f"lora.first_layer={first_layer}", "data.rows=30", "data.folds=3",
        "debug.train_rows=12", "debug.validation_rows=2", "train.max_steps=1",
    )  # fmt: skip


def test_the_best_recipe_trains_as_the_defaults_do() -> None:
    best, default = config("experiment=best"), config()
    assert best.model_dump(exclude={"eval"}) == default.model_dump(exclude={"eval"})
    assert best.eval != default.eval


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_an_optimiser_step(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    from lmsys_unsloth.evaluate.scoring import predict_rows
    from lmsys_unsloth.train.training import train_or_load

    settings, run = tiny_settings(name, tiny_folder), Run(tmp_path)
    run.describe(settings, "python train.py")
    prepared = prepare_training(settings, run)
    model = train_or_load(settings, run, prepared, NoTracker())
    (step,) = run.learning_curve()
    assert math.isfinite(step["loss"]) and json.loads(run.training.read_text())["steps"] == 1
    predicted, _ = predict_rows(model, prepared, settings)
    assert len(predicted) == 2
