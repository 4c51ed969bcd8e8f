"""Rows → rendered text and ids within the token budget.

The budget is checked on the ids of the rendered whole, never on a sum over pieces, and for a row
that is near or above it also on those of its mirror image (bots exchanged): what is cut depends on
the longer of the two, so it is the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmsys_unsloth.config.placeholders import field_counts
from lmsys_unsloth.config.schema import EachTurnConfig, PromptConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.rendering import Segment, Template, Turn, text_of, turns_of
from lmsys_unsloth.prompting.tokenization import Ids, Vocabulary
from lmsys_unsloth.prompting.truncation import Costs, Measured, cut, plan


@dataclass(slots=True, eq=False)
class Fitted:
    """A row on its way to fitting: the turns it shows so far, and what they come to."""

    row: Comparison
    all_turns: list[Turn]
    turns: list[Turn] = field(init=False)
    """Those that are shown, cut where needed."""
    measured: list[tuple[Measured, Measured, Measured]] = field(default_factory=list)
    text: str = ""
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int32))
    n_tokens: int = 0
    """Tokens of the row or of its mirror image, whichever has more; 0 while unknown."""
    n_characters: int = field(init=False)
    n_cut: int = 0
    """Characters of the conversation that are not shown."""
    reserve: int = 0
    """Tokens to save beyond what the counts of the single texts say."""

    def __post_init__(self) -> None:
        self.turns = self.all_turns
        self.n_characters = sum(len(t.prompt) + len(t.response_a) + len(t.response_b) for t in self.all_turns)


class Fitter:
    """Fits rows into ``prompt.max_tokens``.

    Raises:
        UserError: the budget is too small for the template's own text.
    """

    def __init__(self, vocabulary: Vocabulary, template: Template, prompt: PromptConfig) -> None:
        self.vocabulary, self.template, self.prompt = vocabulary, template, prompt
        self.costs = self._costs()
        self._check_budget()

    def fit(self, rows: Sequence[Comparison]) -> list[Fitted]:
        """Text and ids of each row, in order; every row is treated as if it were alone."""
        jobs = [Fitted(row, self._clean_turns(row)) for row in rows]
        limit = self.prompt.truncation.when_longer_than or self.prompt.max_tokens
        # A row with more characters than that is too long whatever its tokens are: not worth tokenising.
        possible = [job for job in jobs if job.n_characters <= limit * self.vocabulary.longest_token]
        self._render(possible)
        self._render_mirrors(
            [job for job in possible if 0 <= limit - job.n_tokens < _MIRROR_SLACK * (1 + len(job.turns))]
        )
        self._shorten([job for job in jobs if not 0 < job.n_tokens <= limit])
        return jobs

    def ids(self, rendered: Sequence[Sequence[Segment]]) -> list[Ids]:
        """Ids of rendered rows, BOS first where the tokenizer starts texts with one."""
        special, bos = self.vocabulary.special_tokens, self.vocabulary.bos_id
        texts = [segment.text for segments in rendered for segment in segments if not segment.special]
        plain = iter(self.vocabulary.encode(texts))

        def pieces(segments: Sequence[Segment]) -> Iterator[Ids]:
            if bos is not None:
                yield np.array([bos], dtype=np.int32)
            for text, is_special in segments:
                yield np.array([special[text]], dtype=np.int32) if is_special else next(plain)

        return [np.concatenate([*pieces(segments)]) for segments in rendered]

    def _clean_turns(self, row: Comparison) -> list[Turn]:
        clean = self.vocabulary.clean
        return [
            Turn(turn.number, clean(turn.prompt), clean(turn.response_a), clean(turn.response_b))
            for turn in turns_of(row)
        ]

    def _costs(self) -> Costs:
        one, two, gap = (
            len(self.ids([self.template.render(turns)])[0])
            for turns in ([_SHORT], [_SHORT, _SHORT], [_SHORT._replace(after_gap=True)])
        )
        per_turn = [item.each_turn for item in self.prompt.body if isinstance(item, EachTurnConfig)]
        counts = field_counts(per_turn)
        return Costs(
            fixed=2 * one - two,
            per_turn=two - one - sum(counts.values()),  # each short text is one token
            gap=max(gap - one, 0),
            mark=len(self.vocabulary.encode([self.prompt.truncation.mark])[0]),
            weights=(counts["prompt"], counts["response_a"], counts["response_b"]),
        )

    def _check_budget(self) -> None:
        costs, budget = self.costs, self.prompt.max_tokens
        turns = 2 if self.prompt.truncation.turns == "first_and_last" else 1
        own = costs.fixed + costs.gap + turns * costs.per_turn
        least = own + turns * sum(costs.weights) * (_SOMETHING + costs.mark)
        if budget < least:
            raise UserError(
                f"prompt.max_tokens = {budget}: the own text of prompt={self.prompt.name} takes {own} tokens "
                f"with this tokenizer,\n  and {least} are needed to show something of each text. "
                f"Set prompt.max_tokens={least} or more."
            )

    def _render(self, jobs: Sequence[Fitted]) -> None:
        """Set text, ids and length of each job from the turns that it shows."""
        rendered = [self.template.render(job.turns) for job in jobs]
        for job, segments, ids in zip(jobs, rendered, self.ids(rendered), strict=True):
            job.text, job.ids, job.n_tokens = text_of(segments), ids, len(ids)

    def _render_mirrors(self, jobs: Sequence[Fitted]) -> None:
        """Raise each job's length to that of its mirror image."""
        mirrors = [self.template.render([_mirror(turn) for turn in job.turns]) for job in jobs]
        for job, ids in zip(jobs, self.ids(mirrors), strict=True):
            job.n_tokens = max(job.n_tokens, len(ids))

    def _shorten(self, jobs: Sequence[Fitted]) -> None:
        """Cut jobs until they and their mirror images fit.

        Tokens are planned text by text, which can be a few off from the count of the whole; what a
        row turns out to be over is then taken off its budget, and it is planned again.
        """
        self._measure(jobs)
        budget = self.prompt.max_tokens
        pending = list(jobs)
        while pending:
            for job in pending:
                self._apply_plan(job, budget - job.reserve)
            self._render(pending)
            self._render_mirrors(pending)
            pending = [job for job in pending if job.n_tokens > budget]
            for job in pending:
                if job.reserve > budget:  # nothing was left to cut
                    raise UserError(
                        f"row {job.row.id}: with its texts cut away the prompt still has {job.n_tokens} "
                        f"tokens, above prompt.max_tokens = {budget}. Raise it, or shorten the marks."
                    )
                job.reserve += job.n_tokens - budget

    def _measure(self, jobs: Sequence[Fitted]) -> None:
        """Token boundaries of every text of the given jobs."""
        texts = [text for job in jobs for turn in job.all_turns for text in turn[1:4]]
        measured = iter(measure(self.vocabulary, texts, enough=self.prompt.max_tokens))
        for job in jobs:
            job.measured = [(next(measured), next(measured), next(measured)) for _ in job.all_turns]

    def _apply_plan(self, job: Fitted, budget: int) -> None:
        """Choose and cut the turns that ``job`` shows."""
        policy, costs = self.prompt.truncation, self.costs
        lengths = [(p.tokens, a.tokens, b.tokens) for p, a, b in job.measured]
        chosen = plan(lengths, costs, policy, budget)
        job.turns, job.n_cut, previous = [], job.n_characters, -1
        for index, keep in zip(chosen.turns, chosen.tokens, strict=True):
            texts = job.measured[index]
            cuts = [
                cut(text, tokens, policy.cut, policy.mark, costs.mark)
                for text, tokens in zip(texts, keep, strict=True)
            ]
            job.n_cut -= sum(len(t.text) - c.removed for t, c in zip(texts, cuts, strict=True))
            prompt, a, b = (c.text for c in cuts)
            number = job.all_turns[index].number
            job.turns.append(Turn(number, prompt, a, b, after_gap=index != previous + 1))
            previous = index


_MIRROR_SLACK = 8
"""Tokens, for each turn, by which a row's mirror image could be longer: far more than headings differ."""
_SHORT = Turn(1, "x", "x", "x")
_SOMETHING = 4
"""Tokens of each text that the smallest allowed budget has room for."""


def measure(vocabulary: Vocabulary, texts: Sequence[str], enough: int) -> list[Measured]:
    """Token boundaries of texts; of one far longer than ``enough`` tokens only both ends are looked at."""
    result: dict[int, Measured] = {}
    window, todo = enough * _CHARACTERS_PER_TOKEN, list(range(len(texts)))
    while todo:
        whole = [i for i in todo if len(texts[i]) <= 2 * window]
        for i, span in zip(whole, vocabulary.spans([texts[i] for i in whole]), strict=True):
            result[i] = Measured(texts[i], len(span), span[:, 0], span[:, 1])
        long = [i for i in todo if len(texts[i]) > 2 * window]
        heads = vocabulary.spans([texts[i][:window] for i in long])
        tails = vocabulary.spans([texts[i][-window:] for i in long])
        for i, head, tail in zip(long, heads, tails, strict=True):
            # Tokens next to a window's inner edge may be others in the whole text: leave them out.
            starts, ends = head[:-_EDGE, 0], tail[_EDGE:, 1] + (len(texts[i]) - window)
            if min(len(starts), len(ends)) > enough:
                estimate = len(texts[i]) * (len(head) + len(tail)) // (2 * window)
                result[i] = Measured(texts[i], estimate, starts, ends)
        todo = [i for i in long if i not in result]
        window *= 4
    return [result[i] for i in range(len(texts))]


_CHARACTERS_PER_TOKEN = 8
_EDGE = 32


def _mirror(turn: Turn) -> Turn:
    return turn._replace(response_a=turn.response_b, response_b=turn.response_a)
