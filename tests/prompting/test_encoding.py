"""Ids, answers and special tokens of encoded rows, and templates that are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from factories import prompt_config as template
from prompt_rows import BUDGET, LONG, ROW
from small_tokenizers import (
    CHAT_TEMPLATES,
    SMALL_TOKENIZERS,
    TEMPLATES,
    encoder,
    small_gemma2,
    small_llama3,
    tokenizer,
)

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting import encoding
from lmsys_unsloth.prompting.encoding import RowEncoder


@pytest.mark.parametrize("name", SMALL_TOKENIZERS)
def test_ids_are_those_that_the_tokenizer_gives_the_text(name: str) -> None:
    for template_name in set(TEMPLATES) - set(CHAT_TEMPLATES):
        for row in encoder(name, template_name, BUDGET).encode([ROW, LONG]):
            plain = tokenizer(name)(row.text, split_special_tokens=True)
            assert plain.input_ids == row.input_ids.tolist()


def test_rows_keep_their_order_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CHUNK_CHARACTERS", 1000)
    rows = [dataclasses.replace(ROW, id=str(i), label=i % 3) for i in range(300)]
    encoded = encoder("smollm2", "v1").encode(rows, progress=True)
    assert [row.comparison for row in encoded] == rows
    assert encoder("smollm2", "v1").encode([]) == []


def test_a_template_that_writes_bos_itself_is_refused() -> None:
    prompt = template("v1", body=["<bos>", *template("v1").model_dump()["body"]])
    with pytest.raises(UserError, match=r"prompt=v1 has 2 BOS tokens \(id 2\)"):
        RowEncoder(small_gemma2(), prompt)


def test_a_template_that_ends_in_eos_is_refused() -> None:
    prompt = template("v1", body=[*template("v1").model_dump()["body"], "<|eot_id|>"])
    eos = small_llama3().eos_token_id
    with pytest.raises(UserError, match=rf"end-of-text token \(id {eos}\) right before the answer"):
        RowEncoder(small_llama3(), prompt)


def test_problems_of_the_template_are_reported_without_the_command_line_too() -> None:
    with pytest.raises(UserError, match=r"prompt=v1 can't be used:\n  prompt.reply"):
        RowEncoder(tokenizer("smollm2"), template("v1", reply="x"))


def test_markup_in_a_template_is_special_and_in_a_conversation_is_not() -> None:
    prompt = template(
        "v1",
        body=[
            {"each_turn": "<start_of_turn>user\n{prompt}{response_a}{response_b}<end_of_turn>\n"},
            "Best:\n",
        ],
    )
    start, end = small_gemma2().convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    row = Comparison("1", ("<end_of_turn>",), ("a",), ("b",))
    ids = RowEncoder(small_gemma2(), prompt).encode([row])[0].input_ids.tolist()
    assert (ids.count(start), ids.count(end), ids[:2]) == (1, 1, [2, start])


def test_answers_with_other_ids_after_a_rows_text_are_reported() -> None:
    turns = [{"each_turn": "{prompt}{response_a}{response_b}"}, "<|end_of_text|>"]
    made = RowEncoder(small_llama3(), template("v2", body=turns))
    assert len(made.encode([ROW])) == 1
    made.answer_ids = ((1,), (2,), (3,))
    made._tail = np.array([7], np.int32)
    with pytest.raises(UserError, match=r"row 7: the answers are tokens .* after this row's text, but"):
        made.encode([ROW])


def test_the_preview_shows_bos_and_answer_slot() -> None:
    made = encoder("small-llama3", "v2")
    shown = made.preview(made.encode([ROW])[0])
    assert shown.startswith("<|begin_of_text|>Which of the following")
    assert shown.endswith("### Best response:⟦ A| B| Tie⟧")


def test_facts_are_the_results_of_the_checks() -> None:
    facts = encoder("smollm2", "v2").facts()
    assert facts["answers"] == "' A' 330 ĠA, ' B' 389 ĠB, ' Tie' 47832 ĠTie"
    assert facts["BOS"].startswith("none")
    assert facts["budget"] == "90 of 3072 tokens are the template's own text"
    assert encoder("small-gemma2", "v2").facts()["BOS"] == "2, once"
