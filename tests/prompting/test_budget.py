"""Rows are cut to the budget, as much as needed and no more, without tokenising all of long texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from factories import prompt_config as template
from prompt_rows import BUDGET, LONG, ROW
from small_tokenizers import SMALL_TOKENIZERS, encoder, small_llama3

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.budget import tokenize_texts
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.prompting.rendering import Turn


def test_a_row_counts_the_characters_that_were_cut() -> None:
    whole, cut = encoder("small-llama3", "v5", BUDGET).encode([ROW, LONG])
    assert (whole.n_cut, whole.share_cut, whole.n_turns_kept) == (0, 0.0, 2)
    assert cut.n_turns_kept == 1
    assert cut.n_characters == sum(map(len, (*LONG.prompts, *LONG.responses_a, *LONG.responses_b)))
    assert 0.5 < cut.share_cut < 1
    assert whole.input_ids.dtype == np.int32


def test_a_row_at_the_limit_is_not_truncated_and_one_above_is() -> None:
    length = len(encoder("small-llama3", "v2").encode([LONG])[0].input_ids)
    exact, short = (encoder("small-llama3", "v2", limit).encode([LONG])[0] for limit in (length, length - 1))
    assert exact.n_cut == 0 and len(exact.input_ids) == length
    assert short.n_cut > 0


@pytest.mark.parametrize("response_b", ["Tie", "100200"])
def test_a_row_and_its_swapped_copy_of_more_tokens_are_truncated_alike(response_b: str) -> None:
    """The headings change the tokens of ``Tie`` (fewer after a space) and ``100200`` (more after a digit)."""
    turns = {"each_turn": "{prompt}\nA1 {response_a}\nB1{response_b}\n"}
    prompt = template("v2", body=[turns, "### Best response:"])
    row = Comparison("1", ("word " * 40,), ("yes",), (response_b,))
    both = [row, row.swapped()]
    short, long = sorted(len(each.input_ids) for each in RowEncoder(small_llama3(), prompt).encode(both))
    assert short < long
    for limit in range(short - 5, long + 1):
        limited = RowEncoder(small_llama3(), prompt.model_copy(update={"max_tokens": limit}))
        one, other = limited.encode(both)
        assert one.n_cut == other.n_cut and (one.n_cut > 0) == (limit < long)
        assert limit - 5 <= max(len(one.input_ids), len(other.input_ids)) <= limit


def test_the_mark_for_dropped_turns_appears_only_where_turns_were_dropped() -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    mark = made.prompt.truncation.dropped_turns_mark
    one_turn = Comparison("1", LONG.prompts[:1], LONG.responses_a[:1], LONG.responses_b[:1])
    cut, dropped = made.encode([one_turn, LONG])
    assert cut.n_cut > 0 and mark not in cut.text
    assert dropped.text.count(mark) == 1


@pytest.mark.parametrize("name", SMALL_TOKENIZERS)
def test_v3_keeps_256_512_512_tokens_of_the_last_turn(name: str) -> None:
    long = Comparison("1", ("old", "P\n" * 900), ("old", "A\n" * 900), ("old", "B\n" * 900))
    made = encoder(name, "v3")
    (turn,) = made.budget.render([long])[0].turns
    assert turn.number == 2
    assert [len(ids) for ids in made.vocabulary.encode(turn.texts)] == [256, 512, 512]
    shorter = Comparison("1", ("old", "P\n" * 100), ("old", "A\n" * 100), ("old", "B\n" * 100))
    assert len(made.budget.render([shorter])[0].turns) == 2


def count_characters(made: RowEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of characters in each call of ``made.vocabulary.offsets`` from now on."""
    calls: list[int] = []
    offsets = made.vocabulary.offsets

    def counted(texts: Sequence[str]) -> list[np.ndarray]:
        calls.append(sum(map(len, texts)))
        return offsets(texts)

    monkeypatch.setattr(made.vocabulary, "offsets", counted)
    return calls


def test_a_text_of_a_megabyte_is_cut_without_tokenising_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = encoder("small-llama3", "v2")
    calls = count_characters(made, monkeypatch)
    huge = "All work and no play. " * 50_000
    row = made.encode([Comparison("1", ("Hi",), (huge,), ("short",))])[0]
    assert made.prompt.max_tokens - 8 <= len(row.input_ids) <= made.prompt.max_tokens
    assert row.text.count("All work") > 100 and "short" in row.text
    assert 0 < sum(calls) < 100_000


def test_more_of_a_text_is_tokenised_until_both_ends_have_enough_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = encoder("smollm2", "v2")
    calls = count_characters(made, monkeypatch)
    text = "=" * 200_000 + "end"  # one token stands for many of these
    tokenized = tokenize_texts(made.vocabulary, [text], enough=50)[0]
    assert tokenized.text == text
    assert min(len(tokenized.starts), len(tokenized.ends)) > 50
    assert len([n for n in calls if n]) > 2  # more than the first window at both ends
    assert sum(calls) < len(text)


def test_token_boundaries_near_the_ends_are_those_of_the_whole_text() -> None:
    vocabulary = encoder("smollm2", "v2").vocabulary
    for first in range(10):  # the windows end at various characters of a word
        text = ("internationalisation of incomprehensibilities, " * 250)[first : first + 9995]
        (whole,) = vocabulary.offsets([text])
        ends = tokenize_texts(vocabulary, [text], enough=50)[0]
        assert 50 < len(ends.starts) < len(whole) and 50 < len(ends.ends) < len(whole)
        np.testing.assert_array_equal(ends.starts, whole[: len(ends.starts), 0])
        np.testing.assert_array_equal(ends.ends, whole[-len(ends.ends) :, 1])
        assert abs(ends.n_tokens / len(whole) - 1) < 0.1


def test_a_budget_below_the_templates_own_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"prompt.max_tokens = 80: the own text of prompt=v2 takes 90 tokens"):
        encoder("smollm2", "v2", 80)


def test_a_row_of_many_turns_and_its_swapped_copy_are_truncated_alike() -> None:
    """Every turn of the swapped copy has more tokens, so one close to the limit exceeds it by several."""
    turns = {"each_turn": "{prompt}\nA1 {response_a}\nB1{response_b}\n"}
    prompt = template("v2", body=[turns, "### Best response:"])
    row = Comparison("1", ("word " * 5,) * 6, ("yes",) * 6, ("100200",) * 6)
    both = [row, row.swapped()]
    short, long = sorted(len(each.input_ids) for each in RowEncoder(small_llama3(), prompt).encode(both))
    assert short + 2 < long
    limited = RowEncoder(small_llama3(), prompt.model_copy(update={"max_tokens": long - 1}))
    one, other = limited.encode(both)
    assert one.n_cut == other.n_cut > 0 and max(len(one.input_ids), len(other.input_ids)) < long


def test_the_smallest_budget_has_room_for_something_of_each_text() -> None:
    with pytest.raises(UserError, match=r"Set prompt\.max_tokens=") as caught:
        encoder("small-llama3", "v5", 1)
    least = int(str(caught.value).partition("Set prompt.max_tokens=")[2].split()[0])
    row = Comparison("1", ("word " * 300,) * 2, ("word " * 300,) * 2, ("word " * 300,) * 2)
    made = encoder("small-llama3", "v5", least)
    (found,) = made.encode([row])
    shown = found.n_characters - found.n_cut
    assert len(found.input_ids) <= least and shown >= 3 * 4  # 4 tokens of each text


@pytest.mark.parametrize("name", SMALL_TOKENIZERS)
def test_the_costs_of_the_template_add_up_to_its_prompts(name: str) -> None:
    made = encoder(name, "v5")
    costs, short = made.budget.costs, Turn(1, "x", "x", "x")
    for turns in ([short], [short] * 2, [short] * 5):
        expected = costs.fixed + len(turns) * (costs.per_turn + sum(costs.weights))
        assert len(made.budget.ids([made.budget.template.render(turns)])[0]) == expected
    own = costs.fixed + costs.gap + costs.per_turn
    least = own + sum(costs.weights) * (4 + costs.mark)
    assert encoder(name, "v5", least).prompt.max_tokens == least
    with pytest.raises(UserError, match=f"takes {own} tokens .*\n.*Set prompt.max_tokens={least} or more"):
        encoder(name, "v5", least - 1)


def test_a_text_as_long_as_both_windows_is_tokenised_whole() -> None:
    vocabulary = encoder("small-llama3", "v2").vocabulary
    texts = ["a" * length for length in range(1, 200)]
    found = tokenize_texts(vocabulary, texts, enough=4)
    assert [each.text for each in found] == texts


def test_a_row_that_can_not_be_cut_enough_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is checked against the template before; here it is lowered afterwards."""
    budget = encoder("small-llama3", "v2", BUDGET).budget  # other tests use it too
    monkeypatch.setattr(budget, "prompt", budget.prompt.model_copy(update={"max_tokens": 9}))
    with pytest.raises(UserError, match=rf"row {LONG.id}: .* above prompt.max_tokens = 9. Raise it"):
        budget.render([LONG])
