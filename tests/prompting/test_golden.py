"""Prompts and ids of every template with every real tokenizer, as they were looked at and found right.

``tests/prompting/golden/make.py`` says how to write them anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden.make import CASES, build, path
from real_tokenizers import TEMPLATES, TOKENIZERS, tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_are_as_recorded(template: str, name: str, shared: Path) -> None:
    recorded = [json.loads(line) for line in path(template).read_text(encoding="utf-8").splitlines()]
    mine = [record for record in recorded if record["tokenizer"] == name]
    assert [record["case"] for record in mine] == list(CASES)
    for record in mine:
        assert build(template, name, record["case"], shared) == record


@pytest.mark.parametrize("name", TOKENIZERS)
def test_recorded_prompts_continue_with_the_recorded_answers(name: str, shared: Path) -> None:
    """Independent of our code: the tokenizer itself, told to leave user text alone, gives the same ids."""
    plain = tokenizer(name, shared)
    for template in TEMPLATES:
        for line in path(template).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["tokenizer"] != name or (template == "v4" and record["case"] == "multi"):
                continue  # that conversation spells chat markup, which only our renderer can tell from markup
            split = template != "v4"
            assert plain(record["text"], split_special_tokens=split).input_ids == record["ids"]
            slot = record["slot"].partition("⟦")[2].rstrip("⟧")
            for answer, ids in zip(slot.split("|"), record["answer_ids"], strict=True):
                longer = plain(record["text"] + answer, split_special_tokens=split).input_ids
                assert longer == record["ids"] + ids
