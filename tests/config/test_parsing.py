"""All problems of a configuration are reported in one message."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from factories import CONF, composed, config

from lmsys_unsloth.config.parsing import is_known_key, parse_config
from lmsys_unsloth.core.errors import UserError


def names(group: str) -> list[str]:
    return sorted(f.stem for f in (CONF / group).glob("*.yaml") if not f.stem.startswith("_"))


@pytest.mark.parametrize("model", [name for name in names("model") if name != "auto"])
@pytest.mark.parametrize("prompt", names("prompt"))
def test_every_model_can_be_combined_with_every_prompt(model: str, prompt: str) -> None:
    made = config(f"model={model}", f"prompt={prompt}")
    assert made.model.name == model and made.prompt.name == prompt


@pytest.mark.parametrize("group", ["lora", "train", "logger", "debug", "experiment"])
def test_every_preset_is_valid(group: str) -> None:
    assert names(group)
    for name in names(group):
        config(f"{group}={name}")


def test_experiments_contain_only_differences() -> None:
    for file in (CONF / "experiment").glob("*.yaml"):
        lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 20, file.name


def test_all_problems_are_in_one_message() -> None:
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


def test_keys_without_a_similar_name_list_the_known_ones() -> None:
    settings = composed()
    settings["prompt"]["truncation"]["limits"]["xyz"] = 1
    with pytest.raises(UserError, match=r"prompt\.truncation\.limits\.xyz: no such key; known: prompt, resp"):
        parse_config(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora.dropout", 1.0),
        ("train.tokens_per_micro_batch", 0),
        ("train.tokens_per_micro_batch", "many"),
        ("lora.target_modules", ["q_proj", ""]),
        ("lora.target_modules", []),
        ("train.rows_per_step", 0),
        ("train.epochs", 1.5),
        ("model.dtype", "float16"),
        ("logger.kind", "aim"),
        ("model.load_in_4bit", "yes"),
        ("prompt.truncation", {"turns": "all"}),
        ("prompt.body", "Best:"),
        ("data.group_by", "evaluation_session_id"),
    ],
)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    settings = composed()
    section, name = key.split(".")
    settings[section][name] = value
    with pytest.raises(UserError, match=f"(?s)1 problem.*{key}.* = "):
        parse_config(settings)


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("fold", "first"), ("lora", None)])
def test_wrong_values_outside_and_instead_of_sections_are_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"1 problem .*:\n  {key} = {value!r}: input should"):
        parse_config(composed() | {key: value})


def test_missing_values_are_named() -> None:
    settings = composed()
    del settings["lora"]["r"], settings["seed"]
    with pytest.raises(UserError, match=r"(?s)2 problems.*seed: missing.*lora.r: missing"):
        parse_config(settings)


def test_a_stored_configuration_equals_the_original() -> None:
    made = config("model=gemma2", "train.max_grad_norm=10", "data.group_by=[session]")
    assert parse_config(yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize("key", ["seed", "lora", "lora.r", "prompt.truncation.cut", "data.extra.0"])
def test_keys_of_the_schema_are_known(key: str) -> None:
    assert is_known_key(key)


@pytest.mark.parametrize("key", ["trian", "trian.x", "lora.q", "prompt.truncation.cutt"])
def test_other_keys_are_unknown(key: str) -> None:
    assert not is_known_key(key)
