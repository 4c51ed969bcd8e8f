"""Prompts and ids of every template for the tokenizers of real models, as recorded.

``tests/prompting/golden/make.py`` describes how to record them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden.make import CASES, TOKENIZERS, build, path
from real_tokenizers import REAL_TOKENIZERS, tokenizer
from small_tokenizers import CHAT_TEMPLATES, TEMPLATES, encoder


def recorded(template: str, tokenizer_name: str) -> list[dict[str, Any]]:
    lines = path(template).read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["tokenizer"] == tokenizer_name]


def differences(template: str, tokenizer_name: str, shared: Path | None) -> list[str]:
    """Names of recorded values that are different now, with their case."""
    records = recorded(template, tokenizer_name)
    assert [record["case"] for record in records] == list(CASES)
    made = [build(template, tokenizer_name, case, shared) for case in CASES]
    return [
        f"prompt={template} {tokenizer_name} {record['case']}: {key}"
        for record, new in zip(records, made, strict=True)
        for key in record.keys() | new.keys()
        if record.get(key) != new.get(key)
    ]


def check_without_encoder(tokenizer_name: str, shared: Path | None) -> None:
    """Check that the tokenizer alone, set to split special tokens in text, gives the recorded ids."""
    plain = tokenizer(tokenizer_name, shared)
    for template in TEMPLATES:
        for record in recorded(template, tokenizer_name):
            if template in CHAT_TEMPLATES and record["case"] == "multi":
                continue  # its conversation spells chat markup, which the tokenizer can't tell from markup
            split = template not in CHAT_TEMPLATES
            where = (template, tokenizer_name, record["case"])
            assert plain(record["text"], split_special_tokens=split).input_ids == record["ids"], where
            answers = record["slot"].partition("⟦")[2].rstrip("⟧").split("|")
            for answer, ids in zip(answers, record["answer_ids"], strict=True):
                longer = plain(record["text"] + answer, split_special_tokens=split).input_ids
                assert longer == record["ids"] + ids, where


def test_all_tokenizers_are_recorded() -> None:
    for template in TEMPLATES:
        assert [len(recorded(template, name)) for name in TOKENIZERS] == [len(CASES)] * 3


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_of_smollm2_are_as_recorded(template: str) -> None:
    assert differences(template, "smollm2", None) == []


def test_prompts_of_llama3_and_gemma2_are_as_recorded(shared: Path) -> None:
    found = []
    for template in TEMPLATES:
        for name in REAL_TOKENIZERS:
            found += differences(template, name, shared)
    assert found == []


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_small_tokenizers_render_the_recorded_texts(template: str, name: str) -> None:
    made = encoder(f"small-{name}", template)
    for record in recorded(template, name):
        if record["case"] != "truncated":  # where it is cut depends on the vocabulary
            row = made.encode([CASES[record["case"]]])[0]
            assert row.text == record["text"]
            assert made.preview(row).endswith(record["slot"])


def test_smollm2_itself_continues_recorded_prompts_with_the_recorded_ids() -> None:
    check_without_encoder("smollm2", None)


def test_llama3_and_gemma2_themselves_continue_recorded_prompts_with_the_recorded_ids(shared: Path) -> None:
    for name in REAL_TOKENIZERS:
        check_without_encoder(name, shared)
