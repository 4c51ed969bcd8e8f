"""Prompts within the token budget: rows are rendered, tokenised and, if too long, truncated.

The budget applies to the ids of the whole prompt, not to a sum over its parts. It also applies to the
prompt with responses A and B swapped, which may have a few tokens more or less, so that a row and its
swapped copy are truncated at the same characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from lmsys_unsloth.config.placeholders import count_fields
from lmsys_unsloth.config.prompt_schema import EachTurnConfig, PromptConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.rendering import Segment, Template, Turn
from lmsys_unsloth.prompting.tokenization import Ids, Vocabulary
from lmsys_unsloth.prompting.truncation import Costs, TokenizedText, cut_text, plan_truncation

_SWAP_MARGIN = 8
"""Tokens per turn by which the swapped prompt could be longer: many more than headings differ by."""
_LEAST_TOKENS = 4
"""Tokens of each text, besides the mark, that the smallest allowed budget has room for."""
_SHORT_TURN = Turn(1, "x", "x", "x")


@dataclass(slots=True, eq=False)
class RenderedRow:
    """A row with its prompt."""

    comparison: Comparison
    turns: list[Turn]
    """Turns in the prompt, truncated where needed."""
    text: str = ""
    """The prompt, without BOS."""
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int32))
    n_tokens: int = 0
    """Number of ids, of the row or its swapped copy, whichever has more; 0 while unknown."""
    n_characters: int = field(init=False)
    """Characters in the texts of the conversation."""
    n_cut: int = 0
    """How many of those the prompt does not show."""

    def __post_init__(self) -> None:
        self.n_characters = sum(len(text) for turn in self.turns for text in turn.texts)


class TokenBudget:
    """Renders rows as prompts of at most ``prompt.max_tokens`` tokens.

    Raises:
        UserError: the budget is too small for the template's own text.
    """

    def __init__(self, vocabulary: Vocabulary, template: Template, prompt: PromptConfig) -> None:
        self.vocabulary, self.template, self.prompt = vocabulary, template, prompt
        self.costs = self._template_costs()
        own = self.costs.fixed + self.costs.gap + self.costs.per_turn
        least = own + sum(self.costs.weights) * (_LEAST_TOKENS + self.costs.mark)
        if prompt.max_tokens < least:
            raise UserError(
                f"prompt.max_tokens = {prompt.max_tokens}: the own text of prompt={prompt.name} takes {own} "
                f"tokens with this tokenizer,\n  and {least} are needed to show something of each text. "
                f"Set prompt.max_tokens={least} or more."
            )

    def render(self, comparisons: Sequence[Comparison]) -> list[RenderedRow]:
        """Render each row, in order; the result does not depend on the other rows."""
        rows = [RenderedRow(comparison, self._turns(comparison)) for comparison in comparisons]
        limit = self.prompt.truncation.when_longer_than or self.prompt.max_tokens
        # A row of more characters than `limit` tokens can hold is too long: don't tokenise it.
        tokenised = [row for row in rows if row.n_characters <= limit * self.vocabulary.longest_token]
        self._set_prompts(tokenised)
        self._count_swapped(
            [row for row in tokenised if 0 <= limit - row.n_tokens < _SWAP_MARGIN * (1 + len(row.turns))]
        )
        self._truncate([row for row in rows if not 0 < row.n_tokens <= limit])
        return rows

    def ids(self, rendered: Sequence[Sequence[Segment]]) -> list[Ids]:
        """Return token ids of rendered rows, starting with BOS if the tokenizer starts texts with one."""
        special = self.vocabulary.special_tokens
        bos = np.array([*self.vocabulary.bos.values()], dtype=np.int32)
        texts = [text for segments in rendered for text in self.vocabulary.plain_texts(segments)]
        plain = iter(self.vocabulary.encode(texts))

        def pieces(segments: Sequence[Segment]) -> Iterator[Ids]:
            yield bos
            for text, is_special in segments:
                yield np.array([special[text]], dtype=np.int32) if is_special else next(plain)

        return [np.concatenate([*pieces(segments)]) for segments in rendered]

    def _turns(self, row: Comparison) -> list[Turn]:
        clean = self.vocabulary.clean
        texts = zip(row.prompts, row.responses_a, row.responses_b, strict=True)
        return [Turn(i, clean(p), clean(a), clean(b)) for i, (p, a, b) in enumerate(texts, start=1)]

    def _template_costs(self) -> Costs:
        one, two, gap = (
            len(self.ids([self.template.render(turns)])[0])
            for turns in ([_SHORT_TURN], [_SHORT_TURN] * 2, [_SHORT_TURN._replace(after_gap=True)])
        )
        counts = count_fields(
            [item.each_turn for item in self.prompt.body if isinstance(item, EachTurnConfig)]
        )
        return Costs(
            fixed=2 * one - two,
            per_turn=two - one - sum(counts.values()),  # each short text is one token
            gap=max(gap - one, 0),
            mark=len(self.vocabulary.encode([self.prompt.truncation.mark])[0]),
            weights=(counts["prompt"], counts["response_a"], counts["response_b"]),
        )

    def _set_prompts(self, rows: Sequence[RenderedRow]) -> None:
        """Set text, ids and number of tokens of each row from its turns."""
        rendered = [self.template.render(row.turns) for row in rows]
        for row, segments, ids in zip(rows, rendered, self.ids(rendered), strict=True):
            row.text, row.ids, row.n_tokens = "".join(s.text for s in segments), ids, len(ids)

    def _count_swapped(self, rows: Sequence[RenderedRow]) -> None:
        """Raise the number of tokens of each row to that of its swapped copy, if that has more."""
        swapped = [self.template.render([turn.swapped() for turn in row.turns]) for row in rows]
        for row, ids in zip(rows, self.ids(swapped), strict=True):
            row.n_tokens = max(row.n_tokens, len(ids))

    def _truncate(self, rows: Sequence[RenderedRow]) -> None:
        """Truncate rows until they and their swapped copies are within the budget.

        A plan adds up the tokens of single texts, which may differ by a few tokens from those of the
        whole. If a row is still too long, it is planned again with a budget reduced by the difference.
        """
        limit = self.prompt.max_tokens
        texts = [text for row in rows for turn in row.turns for text in turn.texts]
        tokenized = iter(tokenize_texts(self.vocabulary, texts, enough=limit))
        pending = [(row, [[*islice(tokenized, 3)] for _ in row.turns], limit) for row in rows]
        while pending:
            for row, turns, budget in pending:
                self._apply_plan(row, turns, budget)
            self._set_prompts([row for row, *_ in pending])
            self._count_swapped([row for row, *_ in pending])
            pending = [each for each in pending if each[0].n_tokens > limit]
            for row, _, budget in pending:
                if budget < 0:  # nothing is left to cut
                    raise UserError(
                        f"row {row.comparison.id}: with its texts cut away the prompt still has "
                        f"{row.n_tokens} tokens, above prompt.max_tokens = {limit}. "
                        "Raise it, or shorten the marks."
                    )
            pending = [(row, turns, budget - (row.n_tokens - limit)) for row, turns, budget in pending]

    def _apply_plan(self, row: RenderedRow, turns: list[list[TokenizedText]], budget: int) -> None:
        """Drop and cut turns of ``row`` to about ``budget`` tokens."""
        lengths = [(p.n_tokens, a.n_tokens, b.n_tokens) for p, a, b in turns]
        plan = plan_truncation(lengths, self.costs, self.prompt.truncation, budget)
        first = len(turns) - len(plan)
        row.turns, row.n_cut = [], row.n_characters
        for index, keep in enumerate(plan, start=first):
            cuts = [
                cut_text(text, tokens, self.prompt.truncation, self.costs.mark)
                for text, tokens in zip(turns[index], keep, strict=True)
            ]
            (prompt, _), (a, _), (b, _) = cuts
            row.turns.append(Turn(index + 1, prompt, a, b, after_gap=index == first > 0))
            row.n_cut -= sum(len(text.text) for text in turns[index]) - sum(removed for _, removed in cuts)


_CHARACTERS_PER_TOKEN = 8
"""Characters that make a window of about as many tokens as needed, for most texts."""
_UNRELIABLE_TOKENS = 32
"""Tokens at the inner end of a window that may differ from those of the whole text."""


def tokenize_texts(vocabulary: Vocabulary, texts: Sequence[str], enough: int) -> list[TokenizedText]:
    """Find token boundaries; those of a text much longer than ``enough`` tokens only near both ends.

    The time this takes is bounded for a cell of many megabytes: windows at both ends are tokenised, and
    grow until each has more than ``enough`` tokens.
    """
    result: dict[int, TokenizedText] = {}
    window, todo = enough * _CHARACTERS_PER_TOKEN, list(range(len(texts)))
    while todo:
        whole = [i for i in todo if len(texts[i]) <= 2 * window]
        for i, offsets in zip(whole, vocabulary.offsets([texts[i] for i in whole]), strict=True):
            result[i] = TokenizedText(texts[i], len(offsets), offsets[:, 0], offsets[:, 1])
        long = [i for i in todo if len(texts[i]) > 2 * window]
        heads = vocabulary.offsets([texts[i][:window] for i in long])
        tails = vocabulary.offsets([texts[i][-window:] for i in long])
        for i, head, tail in zip(long, heads, tails, strict=True):
            starts = head[:-_UNRELIABLE_TOKENS, 0]
            ends = tail[_UNRELIABLE_TOKENS:, 1] + (len(texts[i]) - window)
            if min(len(starts), len(ends)) > enough:
                estimate = len(texts[i]) * (len(head) + len(tail)) // (2 * window)
                result[i] = TokenizedText(texts[i], estimate, starts, ends)
        todo = [i for i in long if i not in result]
        window *= 4
    return [result[i] for i in range(len(texts))]
