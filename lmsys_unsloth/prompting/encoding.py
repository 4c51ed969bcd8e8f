"""Encoding of comparisons as token ids, up to the answer slot.

A row's ids are those that the tokenizer gives for its rendered text as a whole. Special tokens are
recognised only where the template wrote them, and there is one BOS if the tokenizer itself starts texts
with one. Training and prediction both use :meth:`RowEncoder.encode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby, takewhile
from typing import Any

import numpy as np

from lmsys_unsloth.config.checks import prompt_problems
from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.progress import progress as progress_bar
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.answer_tokens import AnswerIds, find_answer_ids, find_single_tokens
from lmsys_unsloth.prompting.budget import RenderedRow, TokenBudget
from lmsys_unsloth.prompting.rendering import Template, Turn, find_chat_markup
from lmsys_unsloth.prompting.tokenization import Ids, Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRow:
    """A row as model input: the hidden state of its last token predicts the answer."""

    comparison: Comparison
    text: str
    """Rendered prompt, without BOS."""
    input_ids: Ids
    """``[tokens]``, int32: from BOS to the last token before the answer."""
    n_turns_kept: int
    """Turns that the prompt shows."""
    n_characters: int
    """Characters in the texts of the conversation."""
    n_cut: int
    """Characters of those that the prompt does not show; 0 unless the row was truncated."""

    @property
    def share_cut(self) -> float:
        """Fraction of the conversation's characters that the prompt does not show."""
        return self.n_cut / self.n_characters if self.n_characters else 0.0


class RowEncoder:
    """Renders, truncates and tokenises rows for one tokenizer and one template.

    Args:
        tokenizer: fast tokenizer of transformers; it is not modified.
        prompt: the template.

    Raises:
        UserError: the template can't be used with this tokenizer: answers that are not one token each in
            the answer slot, a budget too small for the template's own text, no chat template, more than
            one BOS, or an end-of-text token directly before the answer slot.
    """

    def __init__(self, tokenizer: Any, prompt: PromptConfig) -> None:
        if problems := prompt_problems(prompt):
            raise UserError("\n  ".join([f"prompt={prompt.name} can't be used:", *problems]))
        self.prompt, self.tokenizer = prompt, tokenizer
        self.vocabulary = Vocabulary(tokenizer)
        # A BOS that the chat template writes must not be added to that of TokenBudget.ids.
        bos = "".join(self.vocabulary.bos)
        chat = find_chat_markup(tokenizer, prompt, bos) if prompt.chat else None
        self.template = Template(prompt, chat, self.vocabulary.special_tokens)
        self.budget = TokenBudget(self.vocabulary, self.template, prompt)
        self._check_special_tokens()
        self._contexts = [self._slot_context([turn]) for turn in SAMPLE_TURNS]
        self.answer_ids: AnswerIds = find_answer_ids(self.vocabulary, prompt, self._contexts)
        """Token ids of the three or four answers; one id each unless the template allows several."""
        self._tail = _common_tail(self.budget.ids([self.template.render([turn]) for turn in SAMPLE_TURNS]))

    def encode(self, rows: Sequence[Comparison], progress: bool = False) -> list[EncodedRow]:
        """Encode every row, in order; its ids do not depend on its label or on other rows.

        Raises:
            UserError: the answers have other token ids after the text of one of the rows.
        """
        encoded: list[EncodedRow] = []
        with progress_bar("tokenising", len(rows), "row") if progress else nullcontext() as bar:
            for chunk in chunks(rows):
                encoded += self._encode_chunk(chunk)
                if bar:
                    bar.advance(len(chunk))
        return encoded

    def facts(self) -> dict[str, str]:
        """Results of the checks at construction, by name: ``{"BOS": "128000, once", ...}``."""
        answers = self.prompt.answers.spellings().values()
        tokens = (" ".join(f"{i} {self.vocabulary.piece(i)}" for i in ids) for ids in self.answer_ids)
        single = find_single_tokens(self.vocabulary, self.prompt, self._contexts)
        own = self.budget.costs.fixed + self.budget.costs.per_turn
        bos = " ".join(map(str, self.vocabulary.bos.values()))
        return {
            "answers": ", ".join(f"{answer!r} {each}" for answer, each in zip(answers, tokens, strict=True)),
            "one token in the slot": "; ".join(
                " or ".join(spellings) or f"no spelling of {label}" for label, spellings in single.items()
            ),
            "BOS": f"{bos}, once" if bos else "none, as the tokenizer adds none",
            "padding": "never before the answer slot",
            "budget": f"{own} of {self.prompt.max_tokens} tokens are the template's own text",
        }

    def preview(self, row: EncodedRow) -> str:
        """Decode the ids of a row, and mark its answer slot with ``⟦…⟧``."""
        answers = "|".join(self.prompt.answers.spellings().values())
        return f"{self.vocabulary.decode(row.input_ids)}⟦{answers}⟧"

    def _check_special_tokens(self) -> None:
        """Check that there is at most one BOS, and no EOS directly before the answer slot."""
        ids = self.budget.ids([self.template.render(SAMPLE_TURNS)])[0].tolist()
        for bos in self.vocabulary.bos.values():
            if ids.count(bos) != 1:
                raise UserError(
                    f"prompt={self.prompt.name} has {ids.count(bos)} BOS tokens (id {bos}): every row "
                    "gets one, as this tokenizer starts its texts.\n  Remove the BOS from the template."
                )
        eos = self.vocabulary.eos_id
        if eos is not None and ids[-1] == eos:
            raise UserError(
                f"prompt={self.prompt.name} has the end-of-text token (id {eos}) right before the answer.\n"
                "  Remove it from the end of the template."
            )

    def _slot_context(self, turns: Sequence[Turn]) -> str:
        """Rendered text from the last special token to the answer slot."""
        segments = self.template.render(turns)
        return "" if segments[-1].special else self.vocabulary.plain_texts(segments)[-1]

    def _encode_chunk(self, rows: Sequence[Comparison]) -> list[EncodedRow]:
        rendered = self.budget.render(rows)
        for row in rendered:
            self._check_slot(row)
        return [
            EncodedRow(row.comparison, row.text, row.ids, len(row.turns), row.n_characters, row.n_cut)
            for row in rendered
        ]

    def _check_slot(self, row: RenderedRow) -> None:
        """Check the answer ids of a row that does not end in the tokens after which they were found."""
        size = len(self._tail)
        if size and np.array_equal(row.ids[-size:], self._tail):
            return
        found = find_answer_ids(self.vocabulary, self.prompt, [self._slot_context(row.turns)])
        if found != self.answer_ids:
            raise UserError(
                f"row {row.comparison.id}: the answers are tokens {found} after this row's text, but "
                f"{self.answer_ids} after others.\n  Put fixed text before the answer slot (prompt.body)."
            )


SAMPLE_TURNS = tuple(
    Turn(1, text, text, text) for text in ("", "Hi", "one\n", "two ", "字", '"', "#", "...\n\n", "\t")
)
"""Turns whose last characters could merge with the text after them."""
_CHUNK_CHARACTERS = 2_000_000
"""Characters that are tokenised at once: enough for all cores, few enough to take little memory."""


def chunks(rows: Sequence[Comparison]) -> Iterator[list[Comparison]]:
    """Divide rows into parts that are tokenised at once."""
    lengths = (sum(map(len, (*row.prompts, *row.responses_a, *row.responses_b))) for row in rows)
    numbers = (total // _CHUNK_CHARACTERS for total in accumulate(lengths))
    for _, chunk in groupby(zip(numbers, rows, strict=True), key=lambda pair: pair[0]):
        yield [row for _, row in chunk]


def _common_tail(encoded: Sequence[Ids]) -> Ids:
    """Longest sequence of ids in which all of ``encoded`` end."""
    from_last = zip(*(ids[::-1].tolist() for ids in encoded), strict=False)
    common = [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, from_last)]
    return np.array(common[::-1], dtype=np.int32)
