"""Comparison + template → the text that the model reads, up to the answer slot.

The only renderer: training, evaluation, previews and reports all call :meth:`Template.render`.
It produces :class:`Segment` pieces, so that the next step knows which special tokens were
written by the template; whatever a conversation spells stays plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lmsys_unsloth.config.placeholders import Field, split, unescaped
from lmsys_unsloth.config.schema import AnswersConfig, PromptConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS, Comparison


class Segment(NamedTuple):
    """A stretch of a rendered row; ``special`` marks one special token of the template's own."""

    text: str
    special: bool


class Turn(NamedTuple):
    """One turn as it is shown: its texts may be cut, and turns before it may have been left out."""

    number: int
    """Place in the whole conversation, from 1."""
    prompt: str
    response_a: str
    response_b: str
    after_gap: bool = False


def turns_of(row: Comparison) -> list[Turn]:
    """All turns of a row, nothing cut.

    >>> turns_of(Comparison("7", ("Hi",), ("Hello!",), ("Yo",)))
    [Turn(number=1, prompt='Hi', response_a='Hello!', response_b='Yo', after_gap=False)]
    """
    texts = zip(row.prompts, row.responses_a, row.responses_b, strict=True)
    return [Turn(number, *three) for number, three in enumerate(texts, start=1)]


class ChatMarkup(NamedTuple):
    """What a model's chat template writes around a conversation of one user message."""

    before: str
    after: str
    holds_system: bool
    """False when the template has no system role: the system text then opens the user's message."""


_Part = Segment | Field


class Template:
    """A prompt template made ready for one tokenizer.

    Args:
        prompt: the template.
        chat: markup of the tokenizer's chat template; needed when ``prompt.chat``.
        special_tokens: spellings that are special where the template writes them.
    """

    def __init__(self, prompt: PromptConfig, chat: ChatMarkup | None, special_tokens: Iterable[str]) -> None:
        pieces: list[str | list[str | Field]] = [
            unescaped(item) if isinstance(item, str) else split(item.each_turn) for item in prompt.body
        ]
        if prompt.system and not (chat and chat.holds_system):
            pieces.insert(0, unescaped(prompt.system.strip()) + "\n\n")
        if chat:
            _strip_message(pieces)
            pieces = [chat.before, *pieces, chat.after + unescaped(prompt.reply)]
        pattern = _any_of(special_tokens)
        self._blocks = [
            (_segments(piece, pattern), False) if isinstance(piece, str) else (_parts(piece, pattern), True)
            for piece in pieces
        ]
        self._gap = prompt.truncation.dropped_turns_mark

    def render(self, turns: Sequence[Turn]) -> list[Segment]:
        """The row as the model reads it, without BOS: plain stretches and the template's special tokens."""
        segments: list[Segment] = []
        plain: list[str] = []
        for parts, per_turn in self._blocks:
            for turn in turns if per_turn else _ONCE:
                if per_turn and turn.after_gap:
                    plain.append(self._gap)
                for part in parts:
                    if isinstance(part, Field):
                        plain.append(str(turn.number) if part.name == "turn" else getattr(turn, part.name))
                    elif part.special:
                        _flush(plain, segments)
                        segments.append(part)
                    else:
                        plain.append(part.text)
        _flush(plain, segments)
        return segments


_ONCE = (Turn(0, "", "", ""),)


def text_of(segments: Sequence[Segment]) -> str:
    """The rendered row as one text."""
    return "".join(segment.text for segment in segments)


def mark_slot(text: str, answers: AnswersConfig) -> str:
    """A prompt with its answer slot made visible, for previews.

    >>> mark_slot("### Best response:", AnswersConfig(a=" A", b=" B", tie=" Tie"))
    '### Best response:⟦ A| B| Tie⟧'
    """
    return f"{text}⟦{'|'.join(getattr(answers, label) for label in LABELS)}⟧"


def chat_markup(tokenizer: Any, prompt: PromptConfig) -> ChatMarkup:
    """What the tokenizer's own chat template writes before and after the one user message.

    Raises:
        UserError: the tokenizer has no chat template, or one that can't take a single message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"prompt={prompt.name} needs the model's own chat markup, but its tokenizer has none.\n"
            "  Choose a template without it (prompt=v2), or a model tuned for chat."
        )
    message = {"role": "user", "content": _MESSAGE}
    if system := unescaped((prompt.system or "").strip()):
        with suppress(Exception):  # templates refuse a system role by raising whatever they like
            before, after = _around_message(tokenizer, [{"role": "system", "content": system}, message])
            if system in before:
                return ChatMarkup(before, after, holds_system=True)
    try:
        before, after = _around_message(tokenizer, [message])
    except Exception as error:
        raise UserError(
            f"prompt={prompt.name}: the tokenizer's chat template can't render one user message ({error}).\n"
            "  Choose a template without chat markup (prompt=v2)."
        ) from error
    return ChatMarkup(before, after, holds_system=False)


_MESSAGE = "\ue000message\ue001"
"""Stands for the user's message while the markup around it is found; private-use, so in no template."""


_DATE = "26 Jul 2024"
"""Llama 3.1 and later write a date into the prompt; today's would make training and prediction differ."""


def _around_message(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, str]:
    whole = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string=_DATE
    )
    before, _, after = whole.partition(_MESSAGE)
    return before, after


def _strip_message(pieces: list[str | list[str | Field]]) -> None:
    """Chat templates trim messages: trim the message's fixed ends alike (texts of the row are left alone)."""
    first, last = pieces[0], pieces[-1]
    if isinstance(first, str):
        pieces[0] = first.lstrip()
    if isinstance(last, str):
        pieces[-1] = last.rstrip()


def _any_of(special_tokens: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None


def _segments(text: str, pattern: re.Pattern[str] | None) -> list[_Part]:
    pieces = pattern.split(text) if pattern else [text]
    return [Segment(piece, bool(index % 2)) for index, piece in enumerate(pieces) if piece]


def _parts(piece: list[str | Field], pattern: re.Pattern[str] | None) -> list[_Part]:
    parts: list[_Part] = []
    for part in piece:
        parts += [part] if isinstance(part, Field) else _segments(part, pattern)
    return parts


def _flush(plain: list[str], segments: list[Segment]) -> None:
    if text := "".join(plain):
        segments.append(Segment(text, False))
    plain.clear()
