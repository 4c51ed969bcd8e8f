"""Truncation of long conversations: the turns to keep, and the tokens to keep of each text.

All of it is arithmetic on token counts. Responses A and B are treated alike, so swapping the responses
of a row swaps its truncated texts and changes nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.prompt_schema import TruncationConfig


class Costs(NamedTuple):
    """Numbers of tokens that a template adds to the texts of a conversation."""

    fixed: int
    """BOS and everything that appears once."""
    per_turn: int
    """Headings of one turn."""
    gap: int
    """The mark that replaces dropped turns."""
    mark: int
    """The mark that replaces a removed part of a text."""
    weights: tuple[int, int, int]
    """How often the template shows a prompt, a response A, a response B."""


class TokenizedText(NamedTuple):
    """A text and its token boundaries; of a very long text, only those near both ends."""

    text: str
    n_tokens: int
    """Number of tokens (an estimate for a very long text)."""
    starts: NDArray[np.int64]
    """``[k]``: index of the first character of each of the first k tokens."""
    ends: NDArray[np.int64]
    """``[k]``: index after the last character of each of the last k tokens."""


Lengths = tuple[int, int, int]
"""Tokens of the prompt, response A and response B of one turn."""


def plan_truncation(
    lengths: Sequence[Lengths], costs: Costs, policy: TruncationConfig, budget: int
) -> list[Lengths]:
    """Plan what to keep of a conversation of too many tokens.

    Args:
        lengths: tokens of the three texts of each turn, oldest turn first.
        costs: tokens of the template itself.
        policy: which turns and how many tokens of a text may be kept.
        budget: maximum tokens of the whole row.

    Returns:
        Tokens to keep of each text of the newest turns; older turns are dropped. The newest turn is
        always kept, its texts cut to nothing if the budget leaves no room for them.

    >>> costs = Costs(fixed=10, per_turn=5, gap=0, mark=2, weights=(1, 1, 1))
    >>> plan_truncation([(30, 40, 40), (20, 30, 90)], costs, TruncationConfig(), 115)
    [(20, 30, 50)]
    """
    most = (policy.limits.prompt, policy.limits.response, policy.limits.response)
    limited = [
        [length if limit is None else min(length, limit) for length, limit in zip(turn, most, strict=True)]
        for turn in lengths
    ]

    def cost(turn: Sequence[int]) -> int:
        return costs.per_turn + sum(w * n for w, n in zip(costs.weights, turn, strict=True))

    totals = list(accumulate(map(cost, reversed(limited))))  # of the newest turn, the newest two, ...
    n_kept = 1
    if policy.turns == "drop_oldest":
        whole = costs.fixed + totals[-1] <= budget
        n_kept = len(totals) if whole else max(1, bisect_right(totals, budget - costs.fixed - costs.gap))
    kept = limited[-n_kept:]
    available = budget - costs.fixed - (costs.gap if n_kept < len(lengths) else 0)

    def total(limit: int) -> int:
        return sum(cost([min(length, limit) for length in turn]) for turn in kept)

    limit = bisect_right(range(1, max(map(max, kept)) + 1), available, key=total)
    return [(min(p, limit), min(a, limit), min(b, limit)) for p, a, b in kept]


def cut_text(text: TokenizedText, keep: int, policy: TruncationConfig, mark_tokens: int) -> tuple[str, int]:
    """Shorten a text to about ``keep`` tokens, including those of the mark.

    The text is cut between characters: one that several tokens share is kept or removed as a whole.

    Returns:
        The shortened text, and the number of characters that were removed.

    >>> text = TokenizedText("one two three", 3, np.array([0, 3, 7]), np.array([3, 7, 13]))
    >>> cut_text(text, 2, TruncationConfig(cut="middle", mark="…"), 1)
    ('one…', 10)
    >>> cut_text(text, 2, TruncationConfig(cut="head", mark="…"), 1)
    ('… three', 7)
    """
    if keep >= text.n_tokens:
        return text.text, 0
    keep = max(keep - mark_tokens, 0)
    front = {"head": 0, "middle": (keep + 1) // 2, "tail": keep}[policy.cut]
    back = keep - front
    start = int(text.starts[front])
    end = int(text.ends[-back - 1]) if back else len(text.text)
    return text.text[:start] + policy.mark + text.text[end:], end - start
