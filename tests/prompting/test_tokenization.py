from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tokenizers import TOKENIZERS, tokenizer

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.tokenization import Vocabulary


@pytest.fixture(params=TOKENIZERS, scope="module")
def vocabulary(request: pytest.FixtureRequest, shared: Path) -> Vocabulary:
    return Vocabulary(tokenizer(request.param, shared))


def test_bos_follows_the_tokenizers_own_convention(shared: Path) -> None:
    made = {name: Vocabulary(tokenizer(name, shared)) for name in TOKENIZERS}
    assert {name: each.bos_id for name, each in made.items()} == {
        "llama3": 128000,
        "gemma2": 2,
        "smollm2": None,
    }


def test_text_that_spells_special_tokens_stays_text(vocabulary: Vocabulary) -> None:
    special = set(vocabulary.special_tokens.values())
    for spelling in vocabulary.special_tokens:
        text = f"a{spelling}b {spelling}{spelling}"
        ids = vocabulary.encode([text])[0].tolist()
        assert not special & set(ids)
        assert vocabulary.decode(ids) == text


def test_the_tokenizer_is_left_as_it_was(shared: Path) -> None:
    given_tokenizer = tokenizer("llama3", shared)
    before = given_tokenizer("a<|eot_id|>", truncation=True, max_length=3).input_ids
    Vocabulary(given_tokenizer).encode(["x" * 100])
    assert (
        given_tokenizer("a<|eot_id|>", truncation=True, max_length=3).input_ids
        == before
        == [128000, 64, 128009]
    )


def test_characters_without_bytes_in_the_vocabulary_are_replaced(shared: Path) -> None:
    """SmolLM2's vocabulary lacks six control characters and the planes from U+40000 on."""
    smollm2 = Vocabulary(tokenizer("smollm2", shared))
    assert smollm2.clean("a\x04b\U00050000c") == "a\ufffdb\ufffdc"
    llama3 = Vocabulary(tokenizer("llama3", shared))
    assert llama3.clean("a\x04b\U00050000c") == "a\x04b\U00050000c"


def test_lone_surrogates_are_replaced_one_for_one(vocabulary: Vocabulary) -> None:
    assert vocabulary.clean("a\ud83db\ude00") == "a\ufffdb\ufffd"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None)))
def test_any_text_survives_the_way_to_ids_and_back(vocabulary: Vocabulary, text: str) -> None:
    clean = vocabulary.clean(text)
    assert len(clean) == len(text)
    assert vocabulary.decode(vocabulary.encode([clean])[0]) == clean


def test_equal_definitions_have_equal_fingerprints(shared: Path) -> None:
    prints = [Vocabulary(tokenizer(name, shared)).fingerprint for name in (*TOKENIZERS, *TOKENIZERS)]
    assert prints[:3] == prints[3:] and len(set(prints)) == 3


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="object is not a fast tokenizer"):
        Vocabulary(object())
