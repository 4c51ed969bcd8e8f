"""Prompts are right for every kind of tokenizer: golden tokens, and the ids that it gives the same text."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import prompt_config as template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tokenizers import tokenizer as real_tokenizer
from tokenizer_kinds import KINDS, tokenizer
from tokenizers.processors import TemplateProcessing

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.encoding import RowEncoder

ROW = Comparison("1", ("Is 12345 a tie? 🌆",), ("It is.",), ("No",))
CHAT_KINDS = tuple(kind for kind in KINDS if kind != "gpt2")
MARKUP = ("<|im_end|>", "<|endoftext|>", "<eos>", "</s>", "<s>", "[INST]", "<think>", "<|eot_id|>", "<0x0A>")


@functools.cache
def encoder(kind: str, chat: bool, max_tokens: int = 512) -> RowEncoder:
    """A short template: plain, or as a chat with a system message and a reply."""
    turns: Any = {"each_turn": "{prompt}|{response_a}|{response_b}\n"}
    body = [turns, "Which is better?"] if chat else ["The tie:\n", turns, "Best:"]
    form = {"system": "Be fair.", "reply": "Best:"} if chat else {"system": None}
    return RowEncoder(tokenizer(kind), template("v2", chat=chat, body=body, max_tokens=max_tokens, **form))


GOLDEN = {
    ("gpt2", False): ("The Ġtie : Ċ I s Ġ12 345 Ġa Ġtie ? Ġ ð Ł Į Ĩ | It Ġis . | N o Ċ B est :"),
    ("qwen3", False): ("The Ġtie : Ċ I s Ġ 1 2 3 4 5 Ġa Ġtie ? Ġ ð Ł Į Ĩ | It Ġis . | N o Ċ B est :"),
    ("qwen3", True): (
        "<|im_start|> s y s t e m Ċ B e Ġf a i r . <|im_end|> Ċ <|im_start|> user Ċ I s Ġ 1 2 3 4 5 Ġa "
        "Ġtie ? Ġ ð Ł Į Ĩ | It Ġis . | N o Ċ Which Ġis Ġbetter ? <|im_end|> Ċ <|im_start|> a s s i s t "
        "a n t Ċ <think> ĊĊ </think> ĊĊ B est :"
    ),
    ("phi4", False): ("The Ġtie : Ċ I s Ġ 123 45 Ġa Ġtie ? Ġ ð Ł Į Ĩ | It Ġis . | N o Ċ B est :"),
    ("phi4", True): (
        "<|im_start|> s y s t e m <|im_sep|> B e Ġf a i r . <|im_end|> <|im_start|> user <|im_sep|> I "
        "s Ġ 123 45 Ġa Ġtie ? Ġ ð Ł Į Ĩ | It Ġis . | N o Ċ Which Ġis Ġbetter ? <|im_end|> <|im_start|> "
        "a s s i s t a n t <|im_sep|> B est :"
    ),
    ("llama2", False): (
        "<s> ▁The ▁tie: <0x0A> I s ▁12 345 ▁a ▁tie ? ▁ <0xF0> <0x9F> <0x8C> <0x86> | It ▁is . | N o "
        "<0x0A> B est :"
    ),
    ("llama2", True): (
        "<s> ▁ [ I N S T ] ▁ < < S Y S > > <0x0A> B e ▁f a i r . <0x0A> < < / S Y S > > <0x0A> <0x0A> "
        "I s ▁12 345 ▁a ▁tie ? ▁ <0xF0> <0x9F> <0x8C> <0x86> | It ▁is . | N o <0x0A> Which ▁is ▁better "
        "? ▁ [ / I N S T ] B est :"
    ),
    ("mistral", False): (
        "<s> ▁The ▁tie: <0x0A> I s ▁12 345 ▁a ▁tie ? ▁ <0xF0> <0x9F> <0x8C> <0x86> | It ▁is . | N o "
        "<0x0A> B est :"
    ),
    ("mistral", True): (
        "<s> [INST] ▁B e ▁f a i r . <0x0A> <0x0A> I s ▁12 345 ▁a ▁tie ? ▁ <0xF0> <0x9F> <0x8C> <0x86> "
        "| It ▁is . | N o <0x0A> Which ▁is ▁better ? [/INST] B est :"
    ),
    ("llama3", False): (
        "<|begin_of_text|> The Ġtie : Ċ I s Ġ 123 45 Ġa Ġtie ? Ġ ð Ł Į Ĩ | It Ġis . | N o Ċ B est :"
    ),
    ("llama3", True): (
        "<|begin_of_text|> <|start_header_id|> s y s t e m <|end_header_id|> ĊĊ B e Ġf a i r . "
        "<|eot_id|> <|start_header_id|> user <|end_header_id|> ĊĊ I s Ġ 123 45 Ġa Ġtie ? Ġ ð Ł Į Ĩ | "
        "It Ġis . | N o Ċ Which Ġis Ġbetter ? <|eot_id|> <|start_header_id|> a s s i s t a n t "
        "<|end_header_id|> ĊĊ B est :"
    ),
    ("gemma2", False): (
        "<bos> The ▁tie: \\n I s ▁12 345 ▁a ▁tie ? ▁ <0xF0> <0x9F> <0x8C> <0x86> | It ▁is . | N o \\n B est :"
    ),
    ("gemma2", True): (
        "<bos> <start_of_turn> user \\n B e ▁f a i r . \\n\\n I s ▁12 345 ▁a ▁tie ? ▁ <0xF0> <0x9F> "
        "<0x8C> <0x86> | It ▁is . | N o \\n Which ▁is ▁better ? <end_of_turn> \\n <start_of_turn> m o d "
        "e l \\n B est :"
    ),
}
"""Tokens of :data:`ROW` as the vocabulary spells them, by kind and whether the prompt is a chat."""


@pytest.mark.parametrize(("kind", "chat"), GOLDEN)
def test_the_tokens_of_a_row_are_as_recorded(kind: str, chat: bool) -> None:
    made = encoder(kind, chat)
    row = made.encode([ROW])[0]
    assert (
        " ".join(made.vocabulary.piece(i) for i in row.input_ids).replace("\n", "\\n") == GOLDEN[kind, chat]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_row_has_the_ids_that_the_tokenizer_gives_its_text(kind: str) -> None:
    row = encoder(kind, chat=False).encode([ROW])[0]
    assert tokenizer(kind)(row.text, split_special_tokens=True).input_ids == row.input_ids.tolist()


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_a_chat_row_has_the_ids_of_the_tokenizers_chat_template_and_the_reply(kind: str) -> None:
    row, made = encoder(kind, chat=True).encode([ROW])[0], tokenizer(kind)
    message = "Is 12345 a tie? 🌆|It is.|No\nWhich is better?"
    messages = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": message}]
    if kind == "gemma2":  # refuses a system message
        messages = [{"role": "user", "content": f"Be fair.\n\n{message}"}]
    text = made.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert made.bos_token is None or row.text == (text + "Best:").removeprefix(made.bos_token)
    assert row.input_ids.tolist() == made(text + "Best:", add_special_tokens=False).input_ids


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("kind", KINDS)
def test_markup_in_a_conversation_adds_no_special_token(kind: str, chat: bool) -> None:
    if chat and kind == "gpt2":
        return
    made = encoder(kind, chat)
    text = " ".join(MARKUP) + "".join(made.vocabulary.special_tokens)
    plain, hostile = made.encode([ROW, Comparison("2", (text,), (text[::-1],), (text * 2,))])
    assert text in hostile.text and special_ids(made, hostile.input_ids) == special_ids(made, plain.input_ids)


def special_ids(made: RowEncoder, ids: np.ndarray) -> list[int]:
    special = set(made.vocabulary.special_tokens.values())
    return [i for i in ids.tolist() if i in special]


@pytest.mark.parametrize("kind", KINDS)
def test_bos_is_first_and_eos_absent_without_chat_markup(kind: str) -> None:
    made = encoder(kind, chat=False)
    found = special_ids(made, made.encode([ROW])[0].input_ids)
    assert found == ([] if kind in ("gpt2", "qwen3", "phi4") else [tokenizer(kind).bos_token_id])


def test_white_space_beside_a_special_token_that_absorbs_it_is_left_out() -> None:
    body: Any = [
        {"each_turn": "<|im_sep|>{prompt} <|im_end|>\n{response_a}|{response_b}"},
        "<|im_sep|> Best:",
    ]
    made = RowEncoder(tokenizer("phi4"), template("v2", body=body))
    row = made.encode([Comparison("1", (" \n tie \t",), (" a",), ("b\n ",))])[0]
    assert row.text == "<|im_sep|> \n tie \t <|im_end|>\n a|b\n <|im_sep|> Best:"
    assert row.input_ids.tolist() == tokenizer("phi4")(row.text).input_ids
    expected = "<|im_sep|> tie <|im_end|> a | b <|im_sep|> B est :"
    assert " ".join(made.vocabulary.piece(i) for i in row.input_ids) == expected


words = st.sampled_from(["🌆", "川の流れ", "e\u0301", "word ", "\n\n", " ", "12345", "\t", "|", *MARKUP])
texts = st.lists(words | st.text(max_size=8), max_size=60).map("".join)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(texts, texts, texts, st.booleans(), st.integers(110, 150))
def test_truncated_rows_are_valid_text_within_the_budget(
    kind: str, prompt: str, a: str, b: str, chat: bool, budget: int
) -> None:
    chat = chat and kind != "gpt2"
    made, row = encoder(kind, chat, budget), Comparison("1", (prompt,), (a,), (b,))
    one, other = made.encode([row, row.swapped()])
    for each in (one, other):
        assert len(each.input_ids) <= budget and each.n_cut == one.n_cut
        assert special_ids(made, each.input_ids) == special_ids(made, made.encode([ROW])[0].input_ids)
        assert "\ufffd" in each.text or "\ufffd" not in made.vocabulary.decode(each.input_ids)
        assert each.text.endswith("Best:")


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_and_length_settings_of_the_tokenizer_have_no_effect(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tokenizer(kind)
    long = Comparison("1", ("word " * 100,), ("yes " * 100,), ("no " * 100,))
    prompt = encoder(kind, chat=False, max_tokens=4096).prompt
    expected = RowEncoder(made, prompt).encode([long])[0]
    monkeypatch.setattr(made, "model_max_length", 16)
    made.backend_tokenizer.enable_truncation(8)
    try:
        row = RowEncoder(made, prompt).encode([long])[0]
    finally:
        made.backend_tokenizer.no_truncation()
    assert row.n_cut == 0 and len(row.input_ids) > 300
    np.testing.assert_array_equal(row.input_ids, expected.input_ids)


def test_special_tokens_that_a_tokenizer_puts_around_texts_are_before_rows_only() -> None:
    made = copy.deepcopy(tokenizer("phi4"))
    first, second, last, _ = sorted(made.get_added_vocab().items())
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first[0]} {second[0]} $A {last[0]}", special_tokens=[first, second, last]
    )
    made.chat_template = f"{first[0]}{second[0]}>{{{{ messages[-1].content }}}}<"
    row = RowEncoder(made, encoder("phi4", chat=False).prompt).encode([ROW])[0]
    assert [*row.input_ids.tolist(), last[1]] == made(row.text).input_ids
    chat = RowEncoder(made, template("v2", chat=True)).encode([ROW])[0]
    assert chat.text.startswith(">") and [*chat.input_ids.tolist(), last[1]] == made(chat.text).input_ids


@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_a_padding_token_has_no_effect(kind: str) -> None:
    padded = copy.deepcopy(tokenizer(kind))
    assert padded.pad_token is None
    padded.pad_token = padded.eos_token
    made = encoder(kind, chat=False)
    row = RowEncoder(padded, made.prompt).encode([ROW])[0]
    np.testing.assert_array_equal(row.input_ids, made.encode([ROW])[0].input_ids)


def test_facts_say_which_spellings_are_one_token_in_the_slot() -> None:
    facts = {kind: encoder(kind, chat=False).facts() for kind in ("qwen3", "llama2", "gemma2")}
    for kind, space in (("qwen3", "Ġ"), ("llama2", "▁"), ("gemma2", "▁")):
        a, b, tie = (tokenizer(kind).convert_tokens_to_ids(space + word) for word in ("A", "B", "Tie"))
        assert facts[kind]["answers"] == f"' A' {a} {space}A, ' B' {b} {space}B, ' Tie' {tie} {space}Tie"
        plain_a, plain_b = tokenizer(kind).convert_tokens_to_ids(["A", "B"])
        assert facts[kind]["one token in the slot"] == (
            f"'A' [{plain_a}] or ' A' [{a}]; 'B' [{plain_b}] or ' B' [{b}]; ' Tie' [{tie}]"
        )


@pytest.mark.slow
def test_facts_of_the_real_tokenizers(shared: Path) -> None:
    llama3, gemma2 = (
        RowEncoder(real_tokenizer(name, shared), template("v2")).facts() for name in ("llama3", "gemma2")
    )
    assert llama3["answers"] == "' A' 362 ĠA, ' B' 426 ĠB, ' Tie' 59825 ĠTie"
    assert llama3["one token in the slot"] == "' A' [362]; ' B' [426]; ' Tie' [59825]"  # ':A' is one token
    assert gemma2["answers"] == "' A' 586 ▁A, ' B' 599 ▁B, ' Tie' 34135 ▁Tie"
