"""What is left out of a conversation that is too long: which turns, and how much of which text.

Everything here is arithmetic on token counts. Both answers enter alike and nothing depends on
their order, so exchanging the bots exchanges the cut texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.schema import LimitsConfig, TruncationConfig

LEAST_TOKENS = 16
"""Texts are not cut below this many tokens as long as there is another way."""


class Costs(NamedTuple):
    """Tokens that a template takes beside the conversation's own texts."""

    fixed: int
    """BOS and everything that stands there once."""
    per_turn: int
    """Headings of one turn."""
    gap: int
    """The mark for turns left out."""
    mark: int
    """The mark for a part of a text taken out."""
    weights: tuple[int, int, int]
    """How often the template shows a prompt, an answer A, an answer B."""


class Measured(NamedTuple):
    """A text with its token boundaries; of a very long text only both ends are known."""

    text: str
    tokens: int
    """Number of tokens (an estimate for a very long text)."""
    starts: NDArray[np.int64]
    """Character at which each of the first tokens starts, ``(k,)``."""
    ends: NDArray[np.int64]
    """Character before which each of the last tokens ends, ``(k,)``."""


Lengths = tuple[int, int, int]
"""Tokens of prompt, answer A, answer B of one turn."""


class Plan(NamedTuple):
    """Which turns stay, and how many tokens each of their texts may keep."""

    turns: list[int]
    tokens: list[Lengths]


def plan(lengths: Sequence[Lengths], costs: Costs, policy: TruncationConfig, budget: int) -> Plan:
    """Fit a conversation into ``budget`` tokens.

    Args:
        lengths: tokens of the three texts of each turn, oldest first.
        costs: what the template itself takes.
        policy: which turns and which parts go first.
        budget: tokens for the whole row.

    Returns:
        At least the newest turn (and the oldest, under ``first_and_last``), whatever the budget.

    >>> costs = Costs(fixed=10, per_turn=5, gap=0, mark=2, weights=(1, 1, 1))
    >>> plan([(30, 40, 40), (20, 30, 90)], costs, TruncationConfig(), 115)
    Plan(turns=[1], tokens=[(20, 30, 50)])
    """
    limited = [_limit(turn, policy.limits) for turn in lengths]
    kept = _choose_turns(limited, costs, policy.turns, budget)
    overhead = costs.fixed + costs.per_turn * len(kept) + (costs.gap if len(kept) < len(lengths) else 0)
    texts = [length for turn in kept for length in limited[turn]]
    weights = costs.weights * len(kept)
    shares = _share(texts, weights, budget - overhead, policy.share, LEAST_TOKENS + costs.mark)
    return Plan(kept, [(shares[i], shares[i + 1], shares[i + 2]) for i in range(0, len(shares), 3)])


def _limit(turn: Lengths, limits: LimitsConfig) -> Lengths:
    def least(length: int, limit: int | None) -> int:
        return length if limit is None else min(length, limit)

    prompt, a, b = turn
    return least(prompt, limits.prompt), least(a, limits.response), least(b, limits.response)


def _choose_turns(
    lengths: Sequence[Lengths],
    costs: Costs,
    turns: Literal["all", "drop_oldest", "first_and_last", "last_only"],
    budget: int,
) -> list[int]:
    """Indices of the turns that stay, oldest first."""
    last = len(lengths) - 1
    if turns == "last_only":
        return [last]

    def cost(turn: int) -> int:
        texts: Sequence[int] = lengths[turn]
        if turns == "all":  # its texts may still be cut, but not to nothing
            texts = [min(length, LEAST_TOKENS + costs.mark) for length in texts]
        return costs.per_turn + sum(w * n for w, n in zip(costs.weights, texts, strict=True))

    if costs.fixed + sum(map(cost, range(len(lengths)))) <= budget:
        return list(range(len(lengths)))
    kept = [0, last] if turns == "first_and_last" and last else [last]
    total = costs.fixed + costs.gap + sum(map(cost, kept))
    for turn in range(last - 1, 0 if turns == "first_and_last" else -1, -1):
        total += cost(turn)
        if total > budget:
            break
        kept.append(turn)
    return sorted(kept)


def _share(
    lengths: Sequence[int],
    weights: Sequence[int],
    budget: int,
    how: Literal["proportional", "longer_first"],
    least: int,
) -> list[int]:
    """Tokens that each text may keep so that their weighted sum is at most ``budget`` (if it can be)."""

    def cost(shares: Sequence[int]) -> int:
        return sum(weight * share for weight, share in zip(weights, shares, strict=True))

    def level(limit: int) -> list[int]:
        return [min(length, limit) for length in lengths]

    def proportion(parts: int) -> list[int]:
        return [min(length, max(length * parts // _PARTS, least)) for length in lengths]

    if cost(lengths) <= budget:
        return list(lengths)
    if how == "proportional" and cost(proportion(0)) <= budget:
        return proportion(_largest(_PARTS, lambda parts: cost(proportion(parts)) <= budget))
    return level(_largest(max(lengths), lambda limit: cost(level(limit)) <= budget))


_PARTS = 1 << 20


def _largest(top: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to ``top`` that fits, where every smaller one does; 0 if none."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


class Cut(NamedTuple):
    """A text after cutting, and how many of its characters went."""

    text: str
    removed: int


def cut(
    measured: Measured, keep: int, part: Literal["head", "middle", "tail"], mark: str, mark_tokens: int
) -> Cut:
    """Shorten a text to about ``keep`` tokens, the mark among them, between characters.

    A character whose bytes several tokens share stays or goes as one.

    >>> text = Measured("one two three", 3, np.array([0, 3, 7]), np.array([3, 7, 13]))
    >>> cut(text, 2, "middle", "…", 1)
    Cut(text='one…', removed=10)
    >>> cut(text, 2, "head", "…", 1)
    Cut(text='… three', removed=7)
    """
    text = measured.text
    if keep >= measured.tokens:
        return Cut(text, 0)
    keep = max(keep - mark_tokens, 0)
    front = {"head": 0, "middle": (keep + 1) // 2, "tail": keep}[part]
    back = keep - front
    start = int(measured.starts[front])
    end = int(measured.ends[-back - 1]) if back else len(text)
    return Cut(text[:start] + mark + text[end:], end - start)
