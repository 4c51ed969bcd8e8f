from __future__ import annotations

from pathlib import Path

import pytest
from factories import prompt_config as template
from real_tokenizers import tokenizer

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.answer_tokens import answer_ids
from lmsys_unsloth.prompting.tokenization import Vocabulary

SLOT = ["Hi\n\n### Best response:"]


@pytest.fixture(scope="module")
def llama3(shared: Path) -> Vocabulary:
    return Vocabulary(tokenizer("llama3", shared))


def message(vocabulary: Vocabulary, contexts: list[str] = SLOT, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        answer_ids(vocabulary, template("v2", **changes), contexts)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", ((362,), (426,), (59825,))),
        ("gemma2", ((586,), (599,), (34135,))),
        ("smollm2", ((330,), (389,), (47832,))),
    ],
)
def test_ids_of_the_published_answers(name: str, expected: object, shared: Path) -> None:
    assert answer_ids(Vocabulary(tokenizer(name, shared)), template("v2"), SLOT) == expected


def test_an_answer_of_two_tokens_is_shown_with_its_ids_and_what_would_work(llama3: Vocabulary) -> None:
    said = message(llama3, ["### Answer\n"], answers={"a": "A", "b": "B", "tie": "Tie"})
    assert "answers.tie = 'Tie' is 2 tokens here ('T' 51, 'ie' 648), but must be one" in said
    assert "one token for tie: ' Tie' [59825], 'tie' [49831], ' tie' [18623]" in said
    assert "prompt.multi_token_answers=true" in said


def test_an_answer_that_merges_with_the_prompt_is_shown_with_both_ids(llama3: Vocabulary) -> None:
    said = message(llama3, ["Answer: "], answers={"a": "A", "b": "B", "tie": "tie"})
    assert "answers.a = 'A' merges with the text before it: 'Answer: ' ends in [16533, 25, 220]" in said
    assert "in [16533, 25, 362]" in said


def test_answers_that_equal_or_begin_another_are_refused(llama3: Vocabulary) -> None:
    same = message(llama3, answers={"a": " A", "b": " A", "tie": " Tie"})
    assert "answers.a = ' A' [362] equals answers.b = ' A' [362]" in same
    begins = message(llama3, answers={"a": " A", "b": " A is", "tie": " Tie"}, multi_token_answers=True)
    assert "answers.a = ' A' [362] begins answers.b = ' A is' [362, 374]" in begins


def test_answers_of_several_tokens_are_allowed_when_asked_for(llama3: Vocabulary) -> None:
    wordy = template(
        "v2", multi_token_answers=True, answers={"a": " Bot A", "b": " Bot B", "tie": " They are equal"}
    )
    assert answer_ids(llama3, wordy, SLOT) == ((23869, 362), (23869, 426), (2435, 527, 6273))


def test_an_answer_must_have_the_same_token_after_every_text(llama3: Vocabulary) -> None:
    said = message(llama3, ["Best:", "Best: "], answers={"a": "A", "b": "B", "tie": "tie"})
    assert "answers.a = 'A' merges with the text before it" in said
