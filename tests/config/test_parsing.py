"""Configuration: every problem in one message, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import CONF, composed

from lmsys_unsloth.cli.arguments import prepare_arguments
from lmsys_unsloth.config.parsing import Config, is_known_key, parse_config
from lmsys_unsloth.core.errors import UserError


def names(group: str) -> list[str]:
    return sorted(f.stem for f in (CONF / group).glob("*.yaml") if not f.stem.startswith("_"))


@pytest.mark.parametrize("model", names("model"))
@pytest.mark.parametrize("prompt", names("prompt"))
def test_every_model_and_prompt_go_together(model: str, prompt: str) -> None:
    config = parse_config(composed(f"model={model}", f"prompt={prompt}"))
    assert config.model.name == model and config.prompt.name == prompt


@pytest.mark.parametrize("group", ["lora", "train", "logger", "debug", "experiment"])
def test_every_preset_is_valid(group: str) -> None:
    assert names(group)
    for name in names(group):
        needs = ["data.path=x.csv"] if "data=lmsys" in (CONF / group / f"{name}.yaml").read_text() else []
        assert isinstance(parse_config(composed(f"{group}={name}", *needs)), Config)


def test_experiments_are_differences() -> None:
    for file in (CONF / "experiment").glob("*.yaml"):
        lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 20, file.name


def test_all_problems_in_one_message() -> None:
    settings = composed("prompt.max_tokens=99999", "fold=9")
    settings["lora"]["r"] = "abc"
    settings["lora"]["alhpa"] = 3
    settings["train"]["learning_rate"] = -1
    settings["trian"] = {}
    with pytest.raises(UserError) as caught:
        parse_config(settings)
    message = str(caught.value)
    assert message.startswith("6 problems in the configuration:")
    assert "lora.r = 'abc': input should be a valid integer" in message
    assert "lora.alhpa: no such key; did you mean lora.alpha?" in message
    assert "train.learning_rate = -1: input should be greater than 0" in message
    assert "trian: no such key; did you mean train?" in message
    assert "prompt.max_tokens = 99999: must not be above model.max_seq_length = 8192" in message
    assert "fold = 9: data.folds = 5, so the folds are 0 to 4" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora.dropout", 1.0),
        ("train.tokens_per_micro_batch", 0),
        ("train.tokens_per_micro_batch", "many"),
        ("lora.target_modules", ["q_proj", "x_proj"]),
        ("lora.target_modules", []),
        ("train.rows_per_step", 0),
        ("train.epochs", 1.5),
        ("model.dtype", "float16"),
        ("logger.kind", "tensorboard"),
        ("model.load_in_4bit", "yes"),
    ],
)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    settings = composed()
    section, name = key.split(".")
    settings[section][name] = value
    with pytest.raises(UserError, match=f"(?s)1 problem.*{key}"):
        parse_config(settings)


def test_missing_values_are_named() -> None:
    settings = composed()
    del settings["lora"]["r"], settings["seed"]
    with pytest.raises(UserError, match=r"(?s)2 problems.*seed: missing.*lora.r: missing"):
        parse_config(settings)


def test_a_model_needs_a_source_and_a_real_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all null; one must say where the weights are"):
        parse_config(composed("model.package=null", "model.repo=null"))
    with pytest.raises(UserError, match=r"must be a folder with a config\.json"):
        parse_config(composed(f"model.path={tmp_path}"))


def test_configuration_survives_being_written_and_read() -> None:
    config = parse_config(composed("model=gemma2", "train.max_grad_norm=10"))
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_unknown_keys_are_handed_through_to_the_schema() -> None:
    assert prepare_arguments(["lora.q=1", "lora.r=2", "model=llama3", "-m", "trian.x=1"]) == [
        "++lora.q=1", "lora.r=2", "model=llama3", "-m", "++trian.x=1",
    ]  # fmt: skip
    assert is_known_key("prompt.truncation.cut") and not is_known_key("prompt.truncation.cutt")


def test_resume_keeps_the_record_of_the_first_start(tmp_path: Path) -> None:
    resume = f"resume={tmp_path}"
    assert prepare_arguments([resume]) == [resume, "hydra.output_subdir=null"]
    (tmp_path / "config.yaml").touch()
    assert prepare_arguments([resume]) == [resume, "hydra.output_subdir=null", f"hydra.run.dir={tmp_path}"]
