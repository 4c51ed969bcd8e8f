from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tokenizers import REAL_TOKENIZERS
from real_tokenizers import tokenizer as real_tokenizer
from small_tokenizers import SMALL_TOKENIZERS, small_llama3, tokenizer

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.tokenization import Vocabulary


@pytest.fixture(params=SMALL_TOKENIZERS, scope="module")
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(tokenizer(request.param))


def check_special_tokens_in_text(vocabulary: Vocabulary) -> None:
    special = set(vocabulary.special_tokens.values())
    for spelling in vocabulary.special_tokens:
        text = f"a{spelling}b {spelling}{spelling}"
        ids = vocabulary.encode([text])[0].tolist()
        assert not special & set(ids)
        assert vocabulary.decode(ids) == text


def test_bos_is_used_where_the_tokenizer_itself_adds_it() -> None:
    llama3, gemma2, smollm2 = (Vocabulary(tokenizer(name)) for name in SMALL_TOKENIZERS)
    assert llama3.bos == {"<|begin_of_text|>": llama3.special_tokens["<|begin_of_text|>"]}
    assert gemma2.bos == {"<bos>": 2}
    assert smollm2.bos == {}


def test_text_that_spells_special_tokens_stays_text(vocabulary: Vocabulary) -> None:
    check_special_tokens_in_text(vocabulary)


def test_the_real_tokenizers_keep_text_and_add_their_own_bos(shared: Path) -> None:
    llama3, gemma2 = (Vocabulary(real_tokenizer(name, shared)) for name in REAL_TOKENIZERS)
    assert (llama3.bos, gemma2.bos) == ({"<|begin_of_text|>": 128000}, {"<bos>": 2})
    for vocabulary in (llama3, gemma2):
        check_special_tokens_in_text(vocabulary)
        text = "a\x04b\U00050000c 字👩‍👩‍👧 e\u0301\r\n\n\n\n  \t x"
        assert vocabulary.clean(text) == text
        assert vocabulary.decode(vocabulary.encode([text])[0]) == text


def test_the_tokenizer_is_not_modified() -> None:
    given_tokenizer = small_llama3()
    before = given_tokenizer("a<|eot_id|>", truncation=True, max_length=3).input_ids
    Vocabulary(given_tokenizer).encode(["x" * 100])
    after = given_tokenizer("a<|eot_id|>", truncation=True, max_length=3).input_ids
    assert after == before == given_tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "a", "<|eot_id|>"])


@pytest.mark.slow
def test_characters_without_bytes_in_the_vocabulary_are_replaced() -> None:
    """SmolLM2's vocabulary lacks six control characters and the planes from U+40000 on."""
    smollm2 = Vocabulary(tokenizer("smollm2"))
    assert smollm2.clean("a\x04b\U00050000c\U000bffffd") == "a\ufffdb\ufffdc\ufffdd"
    kept = "a\x03b\x7fc\u07ffd\u0800e\uffffg\U0003ffffh\U0010ffff"
    assert smollm2.clean(kept) == kept
    llama3 = Vocabulary(small_llama3())
    assert llama3.clean("a\x04b\U00050000c") == "a\x04b\U00050000c"


def test_lone_surrogates_are_replaced_one_for_one(vocabulary: Vocabulary) -> None:
    assert vocabulary.clean("a\ud83db\ude00") == "a\ufffdb\ufffd"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None, exclude_characters="▁")))  # Gemma decodes this one as a space
def test_decoding_the_ids_of_any_text_gives_that_text(vocabulary: Vocabulary, text: str) -> None:
    clean = vocabulary.clean(text)
    assert len(clean) == len(text)
    assert vocabulary.decode(vocabulary.encode([clean])[0]) == clean


def test_offsets_are_those_of_each_token_in_the_text(vocabulary: Vocabulary) -> None:
    text = "Answer: 字 12 x"
    (offsets,), (ids,) = vocabulary.offsets([text]), vocabulary.encode([text])
    assert offsets.shape == (len(ids), 2)
    assert offsets[0, 0] == 0 and offsets[-1, 1] == len(text)
    assert (offsets[1:, 0] >= offsets[:-1, 0]).all()
    assert vocabulary.offsets([""])[0].shape == (0, 2)


def test_equal_definitions_have_equal_fingerprints() -> None:
    names = (*SMALL_TOKENIZERS, *SMALL_TOKENIZERS)
    fingerprints = [Vocabulary(tokenizer(name)).fingerprint for name in names]
    assert fingerprints[:3] == fingerprints[3:] and len(set(fingerprints)) == 3


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="object is not a fast tokenizer"):
        Vocabulary(object())


def test_a_vocabulary_that_spells_special_tokens_in_any_case_is_refused() -> None:
    """Its ordinary text could contain the model's markup."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]")
    with pytest.raises(UserError, match=r"encodes the plain text '<s>' as a special token in any case"):
        Vocabulary(tokenizer)
