"""The small tokenizers have the properties that the tests of prompts rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_tokenizers import tokenizer as real_tokenizer
from small_tokenizers import small_gemma2, small_llama3, tokenizer


@pytest.mark.parametrize("name", ["small-llama3", "small-gemma2", "smollm2"])
def test_answers_are_one_token_each_except_tie_without_a_space(name: str) -> None:
    def n_tokens(text: str) -> int:
        return len(tokenizer(name)(text, add_special_tokens=False).input_ids)

    for answer in (" A", " B", " Tie", " a", " b", " tie", "A", "B", "C", "tie"):
        assert n_tokens(answer) == 1
    assert n_tokens("Tie") == 2


def test_special_tokens_are_those_of_the_real_tokenizers() -> None:
    llama3, gemma2 = small_llama3(), small_gemma2()
    assert llama3("x").input_ids[0] == llama3.convert_tokens_to_ids("<|begin_of_text|>")
    assert llama3.pad_token_id is None
    assert gemma2("x").input_ids[0] == 2
    assert (gemma2.pad_token_id, gemma2.eos_token_id, gemma2.bos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("train", [small_llama3, small_gemma2])
def test_training_is_deterministic(train: Any) -> None:
    again = train.__wrapped__()
    assert again.backend_tokenizer.to_str() == train().backend_tokenizer.to_str()


@pytest.mark.slow
def test_all_but_the_vocabulary_equals_the_real_tokenizers(shared: Path) -> None:
    for name in ("llama3", "gemma2"):
        small, real = tokenizer(f"small-{name}"), real_tokenizer(name, shared)
        assert _definition(small) == _definition(real), name
        for attribute in ("chat_template", "padding_side", "bos_token", "eos_token", "pad_token"):
            assert getattr(small, attribute) == getattr(real, attribute), (name, attribute)


def _definition(tokenizer: Any) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    del definition["added_tokens"], definition["model"]["vocab"], definition["model"]["merges"]
    processor = definition["post_processor"]
    for part in processor.get("processors", [processor]):
        part.pop("special_tokens", None)  # contains the id of BOS
    return definition
