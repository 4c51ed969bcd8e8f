"""Cells of every kind, good and bad."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsys_unsloth.data import cells
from lmsys_unsloth.data.cells import CellError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("naïve 日本 עברית", "naïve 日本 עברית"),
        ("\ud83d\ude00", "😀"),
        ("cut \ud83d off", "cut \ufffd off"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d", "\ufffd"),
        ("日\ud83d\ude00\ud83d本", "日😀\ufffd本"),
    ],
)
def test_surrogates_are_joined_or_replaced(text: str, expected: str) -> None:
    assert cells.encodable(text) == expected


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_becomes_encodable_and_stays_so(text: str) -> None:
    once = cells.encodable(text)
    once.encode("utf-8")
    assert cells.encodable(once) is once
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert once is text


@pytest.mark.parametrize(("cell", "expected"), [("7", "7"), (7, "7"), (7.0, "7"), (" x ", " x "), ("0", "0")])
def test_identifier(cell: Any, expected: str) -> None:
    assert cells.identifier(cell) == expected


@pytest.mark.parametrize("cell", [None, "", "  ", "nan", "NaN", math.nan, "null"])
def test_a_missing_identifier_is_refused(cell: Any) -> None:
    with pytest.raises(CellError, match="every row needs its own"):
        cells.identifier(cell)


def test_turns_of_a_list_are_counted_when_repaired() -> None:
    notes: Counter[str] = Counter()
    turns = cells.turn_list('["a", null, "", "\\ud83d", "\\ud83d\\ude00"]', "prompt", notes)
    assert turns == ("a", "", "", "\ufffd", "😀")
    assert notes == {"null_turns": 1, "empty_turns": 1, "repaired_surrogates": 1}


def test_a_list_need_not_be_spelled_as_json() -> None:
    assert cells.turn_list(["a", None], "prompt", Counter()) == ("a", "")


@pytest.mark.parametrize(
    ("cell", "kind", "detail"),
    [
        ("Hello", "not a JSON list", "prompt is not a JSON list of turns: Expecting value"),
        ('["a"', "not a JSON list", "prompt is not a JSON list of turns"),
        ("", "not a JSON list", "prompt is not a JSON list of turns"),
        ('{"a": 1}', "not a JSON list", "prompt is '{\"a\": 1}', not a JSON list of turns"),
        ("3", "not a JSON list", "prompt is '3', not a JSON list of turns"),
        (None, "not a JSON list", "prompt is None, not a JSON list of turns"),
        ("['single quotes']", "not a JSON list", "prompt is not a JSON list of turns"),
        ('["a", 3]', "not text", "turn 2 of prompt is 3, not text"),
        ('["a", ["b"]]', "not text", "turn 2 of prompt is ['b'], not text"),
        ("[" * 100_000, "not a JSON list", "prompt is not a JSON list of turns"),
    ],
)
def test_a_bad_list_says_why(cell: Any, kind: str, detail: str) -> None:
    with pytest.raises(CellError) as caught:
        cells.turn_list(cell, "prompt", Counter())
    assert caught.value.problem.kind == kind
    assert detail in caught.value.problem.detail


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content, "num_tokens": 3}


def test_dialogues_of_plain_contents_and_of_parts() -> None:
    parts = [{"type": "text", "text": "Yo", "image": None, "mimeType": None}, {"type": "text", "text": "!"}]
    messages = [_message("user", "Hi"), _message("assistant", parts)]
    assert cells.dialogue(messages, "conversation_a", Counter()) == (("Hi",), ("Yo!",))


@pytest.mark.parametrize(
    ("cell", "detail"),
    [
        ([_message("user", "Hi")], "must alternate user, assistant; it has user"),
        ([_message("assistant", "Yo"), _message("user", "Hi")], "it has assistant, user"),
        ([_message("system", "Be"), _message("user", "Hi"), _message("assistant", "Yo")], "it has system"),
        ("Hi", "is not a list of messages"),
        (["Hi"], "not a list of messages"),
        (None, "not a list of messages"),
        (
            [_message("user", [{"type": "image", "image": "x"}]), _message("assistant", "Yo")],
            "part of type image",
        ),
    ],
)
def test_a_bad_dialogue_says_why(cell: Any, detail: str) -> None:
    with pytest.raises(CellError, match="conversation_a") as caught:
        cells.dialogue(cell, "conversation_a", Counter())
    assert detail in caught.value.problem.detail


@pytest.mark.parametrize(
    ("flags", "expected"),
    [((1, 0, 0), 0), (("0", "1", "0"), 1), (("0.0", "0.0", "1.0"), 2), ((False, False, True), 2)],
)
def test_outcome_of_flags(flags: tuple[Any, ...], expected: int) -> None:
    assert cells.outcome_of_flags(dict(zip("abc", flags, strict=True)), "abc") == expected


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ((1, 1, 0), "two winners"),
        ((0, 0, 0), "no winner"),
        (("", 0, 1), "no winner"),
        ((2, 0, 0), "no winner"),
    ],
)
def test_flags_without_one_winner(flags: tuple[Any, ...], kind: str) -> None:
    with pytest.raises(CellError) as caught:
        cells.outcome_of_flags(dict(zip("abc", flags, strict=True)), "abc")
    assert caught.value.problem.kind == kind


@pytest.mark.parametrize(
    ("cell", "expected"), [("model_a", 0), ("model_b", 1), ("tie (bothbad)", 2), ("both_bad", 2)]
)
def test_outcome(cell: str, expected: int) -> None:
    assert cells.outcome(cell) == expected


@pytest.mark.parametrize("cell", [None, "", "A", ["model_a"], math.nan])
def test_an_unknown_outcome_lists_the_known_ones(cell: Any) -> None:
    with pytest.raises(CellError, match="must be one of model_a, model_b, tie"):
        cells.outcome(cell)


def test_probabilities_and_votes() -> None:
    assert cells.distribution({"a": "0.2", "b": 0.3, "c": 0.5}, "abc", counts=False) == (0.2, 0.3, 0.5)
    assert cells.distribution({"a": 3, "b": "1", "c": 0}, "abc", counts=True) == (0.75, 0.25, 0.0)


@pytest.mark.parametrize(
    ("numbers", "counts"),
    [
        ((0.5, 0.5, 0.5), False),
        ((-1, 1, 1), False),
        ((0, 0, 0), True),
        (("x", 0, 1), False),
        (("nan", 0, 1), True),
    ],
)
def test_what_is_no_distribution(numbers: tuple[Any, ...], counts: bool) -> None:
    with pytest.raises(CellError, match="they must"):
        cells.distribution(dict(zip("abc", numbers, strict=True)), "abc", counts)


@pytest.mark.parametrize(
    ("soft", "label"),
    [((0.6, 0.3, 0.1), 0), ((0.1, 0.8, 0.1), 1), ((0.4, 0.4, 0.2), 2), ((0.4, 0.2, 0.4), 2)],
)
def test_the_label_of_a_soft_one(soft: tuple[float, float, float], label: int) -> None:
    assert cells.most_likely(soft) == label
