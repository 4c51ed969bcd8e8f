from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsys_unsloth.config.prompt_schema import LimitsConfig, TruncationConfig
from lmsys_unsloth.prompting.truncation import Costs, TokenizedText, cut_text, plan_truncation

COSTS = Costs(fixed=10, per_turn=5, gap=3, mark=2, weights=(1, 1, 1))
FOUR_TURNS = [(10, 20, 30), (10, 10, 10), (20, 20, 20), (5, 40, 10)]


def policy(**values: object) -> TruncationConfig:
    return TruncationConfig.model_validate(values)


def total(kept: list[tuple[int, int, int]], n_turns: int, costs: Costs) -> int:
    texts = sum(w * n for turn in kept for w, n in zip(costs.weights, turn, strict=True))
    return costs.fixed + costs.per_turn * len(kept) + costs.gap * (len(kept) < n_turns) + texts


def test_drop_oldest_keeps_the_newest_turns_that_fit() -> None:
    # 10 fixed + 3 gap + (5 + 55) + (5 + 60) = 138; the turn before would need 35 more
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 138) == FOUR_TURNS[2:]
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 172) == FOUR_TURNS[2:]
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 173) == FOUR_TURNS[1:]


def test_all_turns_fit_without_the_mark_for_dropped_turns() -> None:
    # 10 fixed + 4 * 5 + 205 in texts
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 235) == FOUR_TURNS
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 234) == FOUR_TURNS[1:]


def test_the_newest_turn_is_cut_when_it_does_not_fit() -> None:
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 58) == [(5, 25, 10)]
    assert plan_truncation(FOUR_TURNS, COSTS, policy(), 0) == [(0, 0, 0)]


def test_last_only_drops_earlier_turns_even_if_they_would_fit() -> None:
    limits = LimitsConfig(prompt=4, response=12)
    assert plan_truncation(FOUR_TURNS, COSTS, policy(turns="last_only", limits=limits), 1000) == [(4, 12, 10)]


def test_the_longest_texts_are_cut_to_a_common_length() -> None:
    assert plan_truncation([(20, 30, 90)], COSTS, policy(), 10 + 5 + 20 + 30 + 40) == [(20, 30, 40)]
    assert plan_truncation([(20, 30, 90)], COSTS, policy(), 10 + 5 + 20 + 25 + 25) == [(20, 25, 25)]


def test_a_text_that_the_template_shows_twice_is_counted_twice() -> None:
    twice = COSTS._replace(weights=(2, 1, 1))
    assert plan_truncation([(40, 40, 40)], twice, policy(), 15 + 120) == [(30, 30, 30)]


lengths = st.lists(st.tuples(*[st.integers(0, 300)] * 3), min_size=1, max_size=6)
policies = st.builds(
    TruncationConfig,
    turns=st.sampled_from(["drop_oldest", "last_only"]),
    limits=st.builds(
        LimitsConfig, prompt=st.none() | st.integers(1, 99), response=st.none() | st.integers(1, 99)
    ),
)


@given(lengths, policies, st.integers(30, 500))
def test_plans_are_within_the_budget_use_it_and_treat_both_responses_alike(
    lengths: list[tuple[int, int, int]], policy: TruncationConfig, budget: int
) -> None:
    kept = plan_truncation(lengths, COSTS, policy, budget)
    assert total(kept, len(lengths), COSTS) <= budget
    newest = lengths[-len(kept) :]
    most = (policy.limits.prompt, policy.limits.response, policy.limits.response)
    limited = [tuple(min(n, limit or n) for n, limit in zip(turn, most, strict=True)) for turn in newest]
    if kept != limited:  # cut further: one more token for each of the longest texts would be too many
        longest = max(n for turn in kept for n in turn)
        more = [tuple(min(n, longest + 1) for n in turn) for turn in limited]
        assert total(more, len(lengths), COSTS) > budget  # type: ignore[arg-type]
    swapped = plan_truncation([(p, b, a) for p, a, b in lengths], COSTS, policy, budget)
    assert swapped == [(p, b, a) for p, a, b in kept]


WORDS = TokenizedText("one two three", 3, np.array([0, 3, 7]), np.array([3, 7, 13]))


@pytest.mark.parametrize(
    ("part", "keep", "expected"),
    [
        ("tail", 2, "one…"),
        ("head", 2, "… three"),
        ("middle", 2, "one…"),
        ("middle", 1, "…"),
        ("tail", 0, "…"),
        ("head", 3, "one two three"),
    ],
)
def test_the_mark_replaces_the_part_that_was_cut(part: str, keep: int, expected: str) -> None:
    text, removed = cut_text(WORDS, keep, policy(cut=part, mark="…"), 1)
    assert text == expected
    assert removed == len(WORDS.text) - len(expected.replace("…", ""))


def test_a_character_of_several_tokens_is_kept_or_removed_as_a_whole() -> None:
    # "a🌆b" as four tokens: a, two halves of the emoji, b
    text = TokenizedText("a🌆b", 4, np.array([0, 1, 1, 2]), np.array([1, 2, 2, 3]))
    assert cut_text(text, 3, policy(cut="tail", mark="…"), 1) == ("a…", 2)
    assert cut_text(text, 3, policy(cut="head", mark="…"), 1) == ("…b", 2)
    assert cut_text(text, 4, policy(cut="tail", mark="…"), 1) == ("a🌆b", 0)
