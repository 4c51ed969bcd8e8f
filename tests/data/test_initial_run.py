"""A training starts only from adapters that fit it and have not seen its validation rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.dataset import load_fold
from lmsys_unsloth.data.earlier_runs import use_earlier_runs
from lmsys_unsloth.data.trained_rows import load_trained_rows, save_trained_rows

DATA = ("data.rows=30", "data.folds=3")


def stage(path: Path, *overrides: str, fold: int = 0, finished: bool = True) -> Run:
    """What a training leaves in its directory, without weights."""
    run, settings = Run(path), config(*DATA, f"fold={fold}", *overrides)
    made = use_earlier_runs(settings, load_fold(settings.data, fold, run), run)
    earlier = Run(Path(settings.train.init_from)).training_rows if settings.train.init_from else None
    save_trained_rows(run.training_rows, made.train, earlier)
    run.config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    if finished:
        run.training.write_text("{}")
    return run


def stages(run: Run) -> Any:
    return json.loads(run.data.read_text()).get("stages")


def test_the_stages_are_named_in_order(tmp_path: Path) -> None:
    first = stage(tmp_path / "1")
    second = stage(tmp_path / "2", f"train.init_from={first.path}", "train.epochs=2", "prompt=v2")
    third = stage(tmp_path / "3", f"train.init_from={second.path}")
    assert stages(first) is None
    assert stages(third) == [str(tmp_path / name) for name in "123"]


def test_rows_of_earlier_stages_count_as_trained_on(tmp_path: Path) -> None:
    first = stage(tmp_path / "1", "data.rows=60", "data.seed=1")
    second = stage(tmp_path / "2", f"train.init_from={first.path}")
    trained = load_trained_rows([second.training_rows])
    rows = [load_fold(config(*DATA, *more).data, 0).train for more in ((), ("data.rows=60", "data.seed=1"))]
    assert all(row in trained for part in rows for row in part)


def test_every_difference_of_the_weights_is_listed(tmp_path: Path) -> None:
    first = stage(tmp_path / "1")
    with pytest.raises(UserError) as caught:
        stage(tmp_path / "2", f"train.init_from={first.path}", "model=llama3", "lora.r=32", "head=linear")
    message = str(caught.value)
    for part in (
        "model.name = llama3: there it is smollm2",
        "model.repo = unsloth/llama-3-8b-Instruct-bnb-4bit: there it is HuggingFaceTB/SmolLM2-135M-Instruct",
        "lora.r = 32: there it is 16",
        "head.kind = linear: there it is lm",
    ):
        assert part in message
    assert "lora.alpha" not in message


def test_the_order_of_the_adapted_layers_does_not_matter(tmp_path: Path) -> None:
    first = stage(tmp_path / "1", "lora.target_modules=[q_proj,v_proj]")
    stage(tmp_path / "2", f"train.init_from={first.path}", "lora.target_modules=[v_proj,q_proj]")


def test_full_fine_tuning_has_no_rank(tmp_path: Path) -> None:
    first = stage(tmp_path / "1", "lora=none")
    stage(tmp_path / "2", f"train.init_from={first.path}", "lora=none", "lora.r=4")
    with pytest.raises(UserError, match=r"lora\.kind = lora: there it is full"):
        stage(tmp_path / "3", f"train.init_from={first.path}")


def test_a_run_that_saw_validation_rows_is_refused_even_through_another_stage(tmp_path: Path) -> None:
    first = stage(tmp_path / "1", fold=1)
    with pytest.raises(UserError, match=r"trained on 10 of the 10 validation rows of this run"):
        stage(tmp_path / "2", f"train.init_from={first.path}")
    stage(tmp_path / "2", f"train.init_from={first.path}", "debug.evaluate_on_train=true")
    other = stage(tmp_path / "3", f"train.init_from={first.path}", "data.seed=1", "data.rows=60")
    with pytest.raises(
        UserError, match="it, or a stage before it, was trained on 10 of the 10 validation rows"
    ):
        stage(tmp_path / "4", f"train.init_from={other.path}")


def test_the_earlier_run_must_exist_and_be_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        stage(tmp_path / "2", f"train.init_from={tmp_path / 'none'}")
    first = stage(tmp_path / "1", finished=False)
    with pytest.raises(UserError, match=r"its training is not finished .*train.py resume="):
        stage(tmp_path / "2", f"train.init_from={first.path}")
