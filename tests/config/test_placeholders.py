from __future__ import annotations

from lmsys_unsloth.config.checks import prompt_problems
from lmsys_unsloth.config.placeholders import Field, field_counts, form_problems, problems, split, unescaped
from lmsys_unsloth.config.schema import PromptConfig

GOOD = {"answers": {"a": " A", "b": " B", "tie": " Tie"}, "name": "mine"}
TURN = {"each_turn": "{prompt} {response_a} {response_b}\n"}


def sections(**values: object) -> PromptConfig:
    return PromptConfig.model_validate({**GOOD, "body": [TURN, "Best:"], **values})


def test_placeholders_are_names_in_braces_and_nothing_else() -> None:
    assert split('{"key": {prompt}}') == ['{"key": ', Field("prompt"), "}"]
    assert split("{{prompt}} { prompt } {}") == ["{prompt} { prompt } {}"]
    assert split("{turn}{turn}") == [Field("turn"), Field("turn")]


def test_doubled_braces_write_a_placeholder_in_fixed_text() -> None:
    assert unescaped("say {{prompt}} or {json: 1} or {a}") == "say {prompt} or {json: 1} or {a}"


def test_items_of_no_known_form_are_listed() -> None:
    wrong = form_problems(["text", {"each_turn": "x"}, 3, {"each_turn": ""}, {"eachturn": "x"}])
    assert [problem[:6] for problem in wrong] == ["item 2", "item 3", "item 4"]
    assert wrong[2] == "item 4 is {'eachturn': 'x'}, but must be a text or `each_turn: text`"


def test_a_misspelled_placeholder_is_named_with_the_nearest() -> None:
    found = problems([{"each_turn": "{promt} {response_a} {response_b}"}])
    assert found[0].startswith("item 0 holds {promt}, which is no placeholder; did you mean {prompt}?")


def test_a_placeholder_in_fixed_text_is_refused() -> None:
    found = problems(["{prompt}", TURN])
    assert found == [
        "item 0 holds {prompt}, which has a meaning only inside `each_turn: …` "
        "(write {{prompt}} for the plain characters)"
    ]


def test_every_text_must_be_shown() -> None:
    found = problems([{"each_turn": "{prompt} {response_a}"}, "Best:"])
    assert found == ["no `each_turn` item holds {response_b}, so the model would not see it"]


def test_both_answers_must_be_shown_equally_often() -> None:
    found = problems([TURN, {"each_turn": "{response_a}"}])
    assert "both answers must be shown equally often" in found[0]


def test_counts_add_up_over_the_whole_body() -> None:
    counts = field_counts(["{prompt}{response_a}", "{prompt}{response_b}"])
    assert counts == {"prompt": 2, "response_a": 1, "response_b": 1}


def test_contradictions_of_a_template_are_listed_together() -> None:
    wrong = sections(
        answers={"a": "A", "b": "A", "tie": "C"},
        body=["Hi", TURN],
        reply="Best: ",
        system="like {prompt}",
        max_tokens=1000,
        truncation={"when_longer_than": 2000},
    )
    found = "\n".join(prompt_problems(wrong))
    assert len(prompt_problems(wrong)) == 5
    for expected in (
        "prompt.body: must end with a fixed text",
        "prompt.reply = 'Best: ': has a meaning only with prompt.chat=true",
        "prompt: system holds {prompt}",
        "prompt.truncation.when_longer_than = 2000: must not be above prompt.max_tokens = 1000",
        "must be three different texts",
    ):
        assert expected in found


def test_a_sound_template_has_no_problems() -> None:
    assert prompt_problems(sections()) == []
    assert prompt_problems(sections(chat=True, body=[TURN], reply="Best: ")) == []
