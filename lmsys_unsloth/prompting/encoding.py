"""Comparison → token ids up to the answer slot.

One rule decides every id: **a row's ids are what the tokenizer makes of its rendered text**, with
special tokens recognised only where the template wrote them, after one BOS if the tokenizer itself
starts texts with one. Training and prediction both call :meth:`RowEncoder.encode`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config import placeholders
from lmsys_unsloth.config.checks import prompt_problems
from lmsys_unsloth.config.schema import PromptConfig
from lmsys_unsloth.core import cache
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.progress import progress as progress_bar
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.prompting import answer_tokens, budget, rendering, tokenization, truncation
from lmsys_unsloth.prompting.answer_tokens import AnswerIds, answer_ids
from lmsys_unsloth.prompting.budget import Fitted, Fitter
from lmsys_unsloth.prompting.rendering import ChatMarkup, Template, Turn, chat_markup, mark_slot
from lmsys_unsloth.prompting.tokenization import Ids, Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRow:
    """One row ready for the model: the hidden state of its last token predicts the answer token."""

    comparison: Comparison
    text: str
    """Rendered prompt, without BOS."""
    input_ids: Ids
    """``(tokens,)`` int32, from BOS to the last token before the answer."""
    n_turns_kept: int
    """Turns that the prompt shows."""
    n_characters: int
    """Characters in the conversation's texts."""
    n_cut: int
    """How many of those the prompt does not show; 0 for a row that fits."""

    @property
    def share_cut(self) -> float:
        """Share of the conversation's characters that the prompt does not show, 0 to 1."""
        return self.n_cut / self.n_characters if self.n_characters else 0.0


class RowEncoder:
    """Renders, cuts and tokenises rows for one tokenizer and one template.

    Args:
        tokenizer: fast tokenizer of transformers (never changed).
        prompt: the template.

    Raises:
        UserError: whatever is known to go wrong before any row is seen: answers that are not one token
            each in the slot, a budget too small for the template's own text, no chat markup, a double
            BOS, an EOS before the slot.
    """

    def __init__(self, tokenizer: Any, prompt: PromptConfig) -> None:
        if problems := prompt_problems(prompt):
            raise UserError("\n  ".join([f"prompt={prompt.name} can't be used:", *problems]))
        self.prompt, self.tokenizer = prompt, tokenizer
        self.vocabulary = Vocabulary(tokenizer)
        self.bos_id = self.vocabulary.bos_id
        self.template = Template(prompt, self._markup(tokenizer), self.vocabulary.special_tokens)
        self.fitter = Fitter(self.vocabulary, self.template, prompt)
        self._check_special_tokens()
        contexts = [self._slot_context([turn]) for turn in _SAMPLE_TURNS]
        self.answer_ids: AnswerIds = answer_ids(self.vocabulary, prompt, contexts)
        """Token ids of the answers, in LABELS order; one id each unless the template allows several."""
        self._tail = _common_tail(self.fitter.ids([self.template.render([turn]) for turn in _SAMPLE_TURNS]))

    def encode(self, rows: Sequence[Comparison], progress: bool = False) -> list[EncodedRow]:
        """Every row, in order, none dropped; a row's ids never depend on its label or on other rows.

        Raises:
            UserError: the answers would not be the same single tokens after some row's text.
        """
        if not progress:
            return [row for chunk in _chunks(rows) for row in self._encode_chunk(chunk)]
        encoded: list[EncodedRow] = []
        with progress_bar("tokenising", len(rows), "row") as bar:
            for chunk in _chunks(rows):
                encoded += self._encode_chunk(chunk)
                bar.advance(len(chunk))
        return encoded

    def facts(self) -> dict[str, str]:
        """What construction has checked, in words, for the table that opens a run.

        >>> encoder.facts()  # doctest: +SKIP
        {'answers': "' A' 362, ' B' 426, ' Tie' 59825", 'BOS': '128000, once',
         'padding': 'never before the slot', 'budget': '73 of 3072 tokens are the template itself'}
        """
        answers = self.prompt.answers.model_dump().values()
        ids = (" ".join(map(str, each)) for each in self.answer_ids)
        own = self.fitter.costs.fixed + self.fitter.costs.per_turn
        return {
            "answers": ", ".join(f"{answer!r} {each}" for answer, each in zip(answers, ids, strict=True)),
            "BOS": "none, as the tokenizer has it" if self.bos_id is None else f"{self.bos_id}, once",
            "padding": "never before the slot",
            "budget": f"{own} of {self.prompt.max_tokens} tokens are the template itself",
        }

    def preview(self, row: EncodedRow) -> str:
        """The row as the model sees it, decoded from its ids, with the answer slot marked ``⟦…⟧``."""
        return mark_slot(self.vocabulary.decode(row.input_ids), self.prompt.answers)

    def _markup(self, tokenizer: Any) -> ChatMarkup | None:
        """Chat markup without the BOS that some chat templates write themselves: it is added once, later."""
        if not self.prompt.chat:
            return None
        markup = chat_markup(tokenizer, self.prompt)
        if self.bos_id is None:
            return markup
        return markup._replace(before=markup.before.removeprefix(tokenizer.bos_token))

    def _check_special_tokens(self) -> None:
        """One BOS at most, and no EOS in the model's own turn (after it nothing would be predicted)."""
        ids = self.fitter.ids([self.template.render(_SAMPLE_TURNS)])[0].tolist()
        bos, eos = self.bos_id, self.vocabulary.eos_id
        if bos is not None and ids.count(bos) != 1:
            raise UserError(
                f"prompt={self.prompt.name} has {ids.count(bos)} BOS tokens (id {bos}): every row "
                "gets one, as this tokenizer starts its texts.\n  Take the BOS out of the template."
            )
        if eos is not None and ids[-1] == eos:
            raise UserError(
                f"prompt={self.prompt.name} has the end-of-text token (id {eos}) right before the answer.\n"
                "  Take it off the end of the template."
            )

    def _slot_context(self, turns: Sequence[Turn]) -> str:
        """Rendered text from the last special token to the slot."""
        last = self.template.render(turns)[-1]
        return "" if last.special else last.text

    def _encode_chunk(self, rows: Sequence[Comparison]) -> list[EncodedRow]:
        fitted = self.fitter.fit(rows)
        for job in fitted:
            self._check_slot(job)
        return [_encoded(job) for job in fitted]

    def _check_slot(self, job: Fitted) -> None:
        """The last tokens are those after which the answers were checked; else check after this very row."""
        size = len(self._tail)
        if size and np.array_equal(job.ids[-size:], self._tail):
            return
        found = answer_ids(self.vocabulary, self.prompt, [self._slot_context(job.turns)])
        if found != self.answer_ids:
            raise UserError(
                f"row {job.row.id}: the answers are tokens {found} after this row's text, but "
                f"{self.answer_ids} after others.\n  Put fixed text before the answer slot (prompt.body)."
            )


def encode_cached(
    encoder: RowEncoder, rows: Sequence[Comparison], progress: bool = False
) -> list[EncodedRow]:
    """:meth:`RowEncoder.encode`, kept in the cache folder.

    The key holds the rows' content, the whole template, the tokenizer's definition and the source of
    the modules that make ids, so a change in any of them is never answered with old ids.
    """
    key = {
        "what": "encoded rows",
        "rows": rows_fingerprint(rows),
        "template": encoder.prompt.model_dump(mode="json"),
        "markup": encoder.template.render(_SAMPLE_TURNS),
        "tokenizer": encoder.vocabulary.fingerprint,
        "bos": encoder.bos_id,
        "special": encoder.vocabulary.special_tokens,
        "code": _code_fingerprint(),
    }
    stored = cache.load(key)
    if stored is not None:
        return _from_arrays(rows, stored)
    encoded = encoder.encode(rows, progress)
    cache.save(key, _to_arrays(encoded))
    return encoded


_COUNTS = ("n_turns_kept", "n_characters", "n_cut")


def _to_arrays(encoded: Sequence[EncodedRow]) -> dict[str, NDArray[Any]]:
    text, text_end = bytearray(), []
    for row in encoded:
        text += row.text.encode()
        text_end.append(len(text))
    return {
        "ids": np.concatenate([np.empty(0, np.int32), *(row.input_ids for row in encoded)]),
        "ids_end": np.cumsum([len(row.input_ids) for row in encoded], dtype=np.int64),
        "text": np.frombuffer(text, dtype=np.uint8),
        "text_end": np.array(text_end, dtype=np.int64),
        **{name: np.array([getattr(row, name) for row in encoded], dtype=np.int64) for name in _COUNTS},
    }


def _from_arrays(rows: Sequence[Comparison], arrays: dict[str, NDArray[Any]]) -> list[EncodedRow]:
    ids, text = arrays["ids"], arrays["text"].data
    ids_end, text_end = [0, *arrays["ids_end"].tolist()], [0, *arrays["text_end"].tolist()]
    counts = list(zip(*(arrays[name].tolist() for name in _COUNTS), strict=True))
    return [
        EncodedRow(
            row,
            str(text[text_end[i] : text_end[i + 1]], "utf-8"),
            ids[ids_end[i] : ids_end[i + 1]],
            *counts[i],
        )
        for i, row in enumerate(rows)
    ]


def _code_fingerprint() -> str:
    """Of the source that decides which ids a row gets."""
    return cache.code_fingerprint(
        placeholders, rendering, truncation, tokenization, budget, answer_tokens, sys.modules[__name__]
    )


def _encoded(job: Fitted) -> EncodedRow:
    return EncodedRow(
        comparison=job.row,
        text=job.text,
        input_ids=job.ids,
        n_turns_kept=len(job.turns),
        n_characters=job.n_characters,
        n_cut=job.n_cut,
    )


_CHUNK_CHARACTERS = 2_000_000
_SAMPLE_TURNS = tuple(
    Turn(1, text, text, text) for text in ("", "Hi", "one\n", "two ", "字", '"', "#", "...\n\n", "\t")
)
"""Texts whose ends could merge with what follows them."""


def _chunks(rows: Sequence[Comparison]) -> Iterator[list[Comparison]]:
    """Rows that are tokenised together: enough to keep all cores busy, few enough to stay small."""
    chunk: list[Comparison] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(map(len, (*row.prompts, *row.responses_a, *row.responses_b)))
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _common_tail(encoded: Sequence[Ids]) -> Ids:
    """Longest run of ids in which all end."""
    shortest = min(map(len, encoded))
    stacked = np.stack([ids[len(ids) - shortest :] for ids in encoded])
    differs = np.flatnonzero((stacked != stacked[0]).any(axis=0))
    return np.asarray(stacked[0, differs[-1] + 1 if differs.size else 0 :])
