from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import prompt_config as template
from real_tokenizers import tokenizer as real_tokenizer
from small_tokenizers import small_llama3, tokenizer

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.answer_tokens import find_answer_ids, find_single_tokens
from lmsys_unsloth.prompting.tokenization import Vocabulary

SLOT = ["Hi\n\n### Best response:"]


@pytest.fixture(scope="module")
def llama3() -> Vocabulary:
    return Vocabulary(small_llama3())


def ids(vocabulary: Vocabulary, text: str) -> list[int]:
    return [int(i) for i in vocabulary.encode([text])[0]]


def error(vocabulary: Vocabulary, contexts: list[str] = SLOT, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        find_answer_ids(vocabulary, template("v2", **changes), contexts)
    return str(caught.value)


def test_ids_are_those_that_the_tokenizer_gives_each_answer(llama3: Vocabulary) -> None:
    expected = tuple(tuple(ids(llama3, answer)) for answer in (" A", " B", " Tie"))
    assert find_answer_ids(llama3, template("v2"), SLOT) == expected
    smollm2 = Vocabulary(tokenizer("smollm2"))
    assert find_answer_ids(smollm2, template("v2"), SLOT) == ((330,), (389,), (47832,))


def test_a_fourth_answer_comes_last(llama3: Vocabulary) -> None:
    four = {"a": " A", "b": " B", "tie": " Tie", "both_bad": " they"}
    expected = tuple(tuple(ids(llama3, answer)) for answer in four.values())
    assert find_answer_ids(llama3, template("v2", answers=four), SLOT) == expected
    message = error(llama3, answers={**four, "both_bad": " incomprehensible"})
    assert "answers.both_bad = ' incomprehensible' is" in message


def test_an_answer_of_two_tokens_is_reported_with_its_ids_and_spellings_that_work(
    llama3: Vocabulary,
) -> None:
    message = error(llama3, ["### Answer\n"], answers={"a": "A", "b": "B", "tie": "Tie"})
    first, second = ids(llama3, "Tie")
    problem = f"answers.tie = 'Tie' is 2 tokens here ('T' {first}, 'ie' {second}), but must be one"
    assert problem in message
    spellings = ", ".join(f"{word!r} {ids(llama3, word)}" for word in (" Tie", "tie", " tie"))
    assert f"one token for tie: {spellings}" in message
    assert "prompt.multi_token_answers=true" in message


def test_an_answer_that_merges_with_the_prompt_is_reported_with_both_ids(llama3: Vocabulary) -> None:
    message = error(llama3, ["Answer: "], answers={"a": "A", "b": "B", "tie": "tie"})
    before, whole = ids(llama3, "Answer: ")[-3:], ids(llama3, "Answer: A")[-3:]
    assert f"answers.a = 'A' merges with the text before it: 'Answer: ' ends in {before}" in message
    assert f"in {whole}" in message


def test_answers_that_equal_or_begin_another_are_refused(llama3: Vocabulary) -> None:
    a, longer = ids(llama3, " A"), ids(llama3, " A is")
    same = error(llama3, answers={"a": " A", "b": " A", "tie": " Tie"})
    assert f"answers.a = ' A' {a} equals answers.b = ' A' {a}" in same
    begins = error(llama3, answers={"a": " A is", "b": " A", "tie": " Tie"}, multi_token_answers=True)
    assert f"answers.b = ' A' {a} begins answers.a = ' A is' {longer}" in begins


def test_answers_of_several_tokens_are_allowed_by_multi_token_answers(llama3: Vocabulary) -> None:
    answers = {"a": " Bot A", "b": " Bot B", "tie": " They are equal"}
    prompt = template("v2", multi_token_answers=True, answers=answers)
    expected = tuple(tuple(ids(llama3, answer)) for answer in answers.values())
    assert find_answer_ids(llama3, prompt, SLOT) == expected
    assert min(map(len, expected)) > 1


def test_an_answer_must_have_the_same_token_after_every_text(llama3: Vocabulary) -> None:
    message = error(llama3, ["Best:", "Best: "], answers={"a": "A", "b": "B", "tie": "tie"})
    assert "answers.a = 'A' merges with the text before it" in message


def test_published_answers_have_their_ids_in_llama3_and_gemma2(shared: Path) -> None:
    llama3, gemma2 = (Vocabulary(real_tokenizer(name, shared)) for name in ("llama3", "gemma2"))
    assert find_answer_ids(llama3, template("v2"), SLOT) == ((362,), (426,), (59825,))
    assert find_answer_ids(gemma2, template("v2"), SLOT) == ((586,), (599,), (34135,))
    message = error(llama3, ["### Answer\n"], answers={"a": "A", "b": "B", "tie": "Tie"})
    assert "answers.tie = 'Tie' is 2 tokens here ('T' 51, 'ie' 648), but must be one" in message
    assert "one token for tie: ' Tie' [59825], 'tie' [49831], ' tie' [18623]" in message


def test_spellings_are_those_of_the_answer_unless_more_are_asked_for(llama3: Vocabulary) -> None:
    """Without ``further``, only the answer's own word, bare, after a space and after a line break."""
    found = find_single_tokens(llama3, template("v2"), SLOT)
    for label, answer in {"a": "A", "b": "B", "tie": "Tie"}.items():
        words = {spelling.partition(" [")[0] for spelling in found[label]}
        assert words and words <= {repr(answer), repr(f" {answer}"), repr(f"\n{answer}")}
    more = find_single_tokens(llama3, template("v2"), SLOT, further=True)
    assert sum(map(len, more.values())) > sum(map(len, found.values()))


def test_an_answer_that_adds_no_token_is_refused() -> None:
    """A tokenizer without a token for it would make every row's answer empty."""
    tokens = {"x": [1], "xA": [1, 2], "xB": [1, 3], "xT": [1]}
    vocabulary: Any = SimpleNamespace(
        encode=lambda texts: [np.array(tokens.get(text, [1, 9])) for text in texts], decode=str
    )
    prompt = template("v2", answers={"a": "A", "b": "B", "tie": "T"})
    with pytest.raises(UserError, match=r"answers.tie = 'T' merges with the text before it"):
        find_answer_ids(vocabulary, prompt, ["x"])
