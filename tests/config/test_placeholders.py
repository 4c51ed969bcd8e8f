"""Placeholders of prompt templates."""

from __future__ import annotations

from lmsys_unsloth.config.placeholders import Field, count_fields, form_problems, problems, split, unescape

TURN = {"each_turn": "{prompt} {response_a} {response_b}\n"}


def test_only_names_in_braces_are_placeholders() -> None:
    assert split('{"key": {prompt}}') == ['{"key": ', Field("prompt"), "}"]
    assert split("{{prompt}} { prompt } {}") == ["{prompt} { prompt } {}"]
    assert split("{turn}{turn}") == [Field("turn"), Field("turn")]


def test_doubled_braces_write_a_placeholder_in_fixed_text() -> None:
    assert unescape("say {{prompt}} or {json: 1} or {a}") == "say {prompt} or {json: 1} or {a}"


def test_invalid_items_are_listed() -> None:
    wrong = form_problems(["text", {"each_turn": "x"}, 3, {"each_turn": ""}, {"eachturn": "x"}])
    assert [problem[:6] for problem in wrong] == ["item 2", "item 3", "item 4"]
    assert wrong[2] == "item 4 is {'eachturn': 'x'}, but must be a text or `each_turn: text`"


def test_a_misspelled_placeholder_is_named_with_the_most_similar_one() -> None:
    found = problems([{"each_turn": "{promt} {response_a} {response_b}"}])
    assert found[0].startswith("item 0 holds {promt}, which is no placeholder; did you mean {prompt}?")


def test_a_placeholder_in_fixed_text_is_an_error() -> None:
    found = problems(["{prompt}", TURN])
    assert found == [
        "item 0 holds {prompt}, which has a meaning only inside `each_turn: …` "
        "(write {{prompt}} for the plain characters)"
    ]


def test_every_text_must_have_a_placeholder() -> None:
    found = problems([{"each_turn": "{prompt} {response_a}"}, "Best:"])
    assert found == ["no `each_turn` item holds {response_b}, so the model would not see it"]


def test_both_responses_must_appear_equally_often() -> None:
    found = problems([TURN, {"each_turn": "{response_a}"}])
    assert "both must appear equally often" in found[0]


def test_placeholders_are_counted_over_the_whole_body() -> None:
    counts = count_fields(["{prompt}{response_a}", "{prompt}{response_b}"])
    assert counts == {"prompt": 2, "response_a": 1, "response_b": 1}
