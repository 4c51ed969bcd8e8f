from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsys_unsloth.config.schema import LimitsConfig, TruncationConfig
from lmsys_unsloth.prompting.truncation import LEAST_TOKENS, Costs, Measured, cut, plan

COSTS = Costs(fixed=10, per_turn=5, gap=3, mark=2, weights=(1, 1, 1))
FOUR_TURNS = [(10, 20, 30), (10, 10, 10), (20, 20, 20), (5, 40, 10)]


def policy(**values: object) -> TruncationConfig:
    return TruncationConfig.model_validate(values)


def total(made: object, lengths: list[tuple[int, int, int]], costs: Costs) -> int:
    turns, tokens = made  # type: ignore[misc]
    texts = sum(w * n for turn in tokens for w, n in zip(costs.weights, turn, strict=True))
    return costs.fixed + costs.per_turn * len(turns) + costs.gap * (len(turns) < len(lengths)) + texts


def test_drop_oldest_keeps_the_newest_turns_that_fit_whole() -> None:
    # 10 fixed + 3 gap + (5 + 55) + (5 + 60) = 138; the turn before would need 35 more
    assert plan(FOUR_TURNS, COSTS, policy(), 138).turns == [2, 3]
    assert plan(FOUR_TURNS, COSTS, policy(), 172).turns == [2, 3]
    assert plan(FOUR_TURNS, COSTS, policy(), 173).turns == [1, 2, 3]
    assert plan(FOUR_TURNS, COSTS, policy(), 173).tokens == FOUR_TURNS[1:]


def test_the_newest_turn_is_cut_when_even_it_does_not_fit() -> None:
    made = plan(FOUR_TURNS, COSTS, policy(), 58)
    assert made.turns == [3]
    assert made.tokens == [(5, 25, 10)]


def test_first_and_last_fills_up_with_the_newest_of_the_rest() -> None:
    both = policy(turns="first_and_last")
    assert plan(FOUR_TURNS, COSTS, both, 138).turns == [0, 3]
    assert plan(FOUR_TURNS, COSTS, both, 203).turns == [0, 2, 3]
    assert plan(FOUR_TURNS[:1], COSTS, both, 40).turns == [0]


def test_last_only_drops_the_rest_even_when_more_would_fit() -> None:
    limits = LimitsConfig(prompt=4, response=12)
    made = plan(FOUR_TURNS, COSTS, policy(turns="last_only", limits=limits), 1000)
    assert made.turns == [3] and made.tokens == [(4, 12, 10)]


def test_all_keeps_every_turn_until_headings_alone_fill_the_budget() -> None:
    everything = policy(turns="all")
    assert plan(FOUR_TURNS, COSTS, everything, 200).turns == [0, 1, 2, 3]
    assert len(plan(FOUR_TURNS * 50, COSTS, everything, 180).turns) < 6


def test_longer_first_levels_the_longest_texts() -> None:
    assert plan([(20, 30, 90)], COSTS, policy(), 10 + 5 + 20 + 30 + 40).tokens == [(20, 30, 40)]
    assert plan([(20, 30, 90)], COSTS, policy(), 10 + 5 + 20 + 25 + 25).tokens == [(20, 25, 25)]


def test_proportional_keeps_the_same_share_of_each_text() -> None:
    made = plan([(100, 200, 400)], COSTS, policy(share="proportional"), 15 + 350)
    assert made.tokens == [(50, 100, 200)]


def test_proportional_leaves_short_texts_readable() -> None:
    made = plan([(20, 30, 2000)], COSTS, policy(share="proportional"), 15 + 200)
    assert min(made.tokens[0]) >= LEAST_TOKENS


def test_a_text_that_is_shown_twice_costs_twice() -> None:
    twice = COSTS._replace(weights=(2, 1, 1))
    assert plan([(40, 40, 40)], twice, policy(), 15 + 120).tokens == [(30, 30, 30)]


lengths = st.lists(st.tuples(*[st.integers(0, 300)] * 3), min_size=1, max_size=6)
policies = st.builds(
    TruncationConfig,
    turns=st.sampled_from(["all", "drop_oldest", "first_and_last", "last_only"]),
    share=st.sampled_from(["proportional", "longer_first"]),
    limits=st.builds(
        LimitsConfig, prompt=st.none() | st.integers(1, 99), response=st.none() | st.integers(1, 99)
    ),
)


@given(lengths, policies, st.integers(140, 500))
def test_plans_keep_to_the_budget_and_treat_both_answers_alike(
    lengths: list[tuple[int, int, int]], policy: TruncationConfig, budget: int
) -> None:
    made = plan(lengths, COSTS, policy, budget)
    assert total(made, lengths, COSTS) <= budget
    mirrored = plan([(p, b, a) for p, a, b in lengths], COSTS, policy, budget)
    assert mirrored.turns == made.turns
    assert mirrored.tokens == [(p, b, a) for p, a, b in made.tokens]


WORDS = Measured("one two three", 3, np.array([0, 3, 7]), np.array([3, 7, 13]))


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
def test_the_mark_stands_where_the_part_was(part: str, keep: int, expected: str) -> None:
    made = cut(WORDS, keep, part, "…", 1)  # type: ignore[arg-type]
    assert made.text == expected
    assert made.removed == len(WORDS.text) - len(expected.replace("…", ""))


def test_a_character_that_tokens_share_goes_as_one() -> None:
    # "a🌆b" as four tokens: a, two halves of the emoji, b
    shared_character = Measured("a🌆b", 4, np.array([0, 1, 1, 2]), np.array([1, 2, 2, 3]))
    assert cut(shared_character, 3, "tail", "…", 1).text == "a…"
    assert cut(shared_character, 3, "head", "…", 1).text == "…b"
    assert cut(shared_character, 4, "tail", "…", 1).text == "a🌆b"
