"""Rows of a program become comparisons, whatever form their texts have."""

from __future__ import annotations

from typing import Any

import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.predict.conversations import to_comparisons

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
MORE = {"role": "user", "content": "And?"}


@pytest.mark.parametrize(
    "row",
    [
        ("Hi", "a", "b"),
        (["Hi"], ["a"], ("b",)),
        ([USER], "a", [{"role": "assistant", "content": "b"}]),
        ([USER], "a", [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]),
    ],
)
def test_one_turn_in_every_form_is_the_same_comparison(row: tuple[Any, Any, Any]) -> None:
    [found] = to_comparisons([dict(zip(("prompt", "response_a", "response_b"), row, strict=True))])
    assert (found.prompts, found.responses_a, found.responses_b) == (("Hi",), ("a",), ("b",))


def test_earlier_turns_of_messages_are_part_of_both_conversations() -> None:
    system = {"role": "system", "content": "Be brief."}
    [found] = to_comparisons(
        [{"prompt": [system, USER, ASSISTANT, MORE], "response_a": "a", "response_b": "b"}]
    )
    assert found.prompts == ("Be brief.\n\nHi", "And?")
    assert (found.responses_a, found.responses_b) == (("Hello", "a"), ("Hello", "b"))


def test_all_rows_that_cannot_be_compared_are_listed() -> None:
    rows: list[Any] = [
        {"prompt": "Hi", "response_a": "a"},
        {"prompt": ["Hi", "And?"], "response_a": "a", "response_b": ["b", "c"]},
        {"prompt": [USER, ASSISTANT], "response_a": "a", "response_b": "b"},
        {"prompt": 3, "response_a": "a", "response_b": "b"},
        {"prompt": "Hi", "response_a": [MORE], "response_b": "b"},
        {"prompt": "Hi", "response_a": "a", "response_b": "b"},
        "no mapping",
    ]
    with pytest.raises(UserError) as raised:
        to_comparisons(rows)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("6 of 7 rows")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [f"row {n}" for n in (0, 1, 2, 3, 4, 6)]
    assert "lacks response_b" in lines[1] and "turn counts differ" in lines[2] and "user's" in lines[3]
