"""Rendering of a conversation as the text that the model reads, up to the answer slot.

:meth:`Template.render` is the only renderer: training, evaluation, previews and reports use it. It
returns :class:`Segment` objects, which tell special tokens that the template wrote from text of the
conversation that is spelled like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from lmsys_unsloth.config.placeholders import Field, split, unescape
from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.core.errors import UserError


class Segment(NamedTuple):
    """A part of a rendered row: plain text, or one special token written by the template."""

    text: str
    special: bool


class Turn(NamedTuple):
    """One turn of a conversation as the prompt shows it; its texts may be truncated."""

    number: int
    """Position in the whole conversation, from 1."""
    prompt: str
    response_a: str
    response_b: str
    after_gap: bool = False
    """Whether the turns before this one were dropped."""

    @property
    def texts(self) -> tuple[str, str, str]:
        """Prompt, response A and response B."""
        return self.prompt, self.response_a, self.response_b

    def swapped(self) -> Turn:
        """Return the turn with responses A and B swapped."""
        return self._replace(response_a=self.response_b, response_b=self.response_a)


class ChatMarkup(NamedTuple):
    """What a tokenizer's chat template writes before and after a single user message."""

    before: str
    after: str
    has_system: bool
    """Whether ``before`` contains the system text; if not, it is put at the start of the user message."""


class Template:
    """A prompt template, compiled for one tokenizer.

    Args:
        prompt: the template.
        chat: markup of the tokenizer's chat template; required when ``prompt.chat`` is set.
        special_tokens: spellings that are special tokens where the template writes them.
    """

    def __init__(self, prompt: PromptConfig, chat: ChatMarkup | None, special_tokens: Iterable[str]) -> None:
        pieces: list[str | list[str | Field]] = [
            unescape(item) if isinstance(item, str) else split(item.each_turn) for item in prompt.body
        ]
        if prompt.system and not (chat and chat.has_system):
            pieces.insert(0, unescape(prompt.system.strip()) + "\n\n")
        if chat:
            # Chat templates strip messages. Strip the message's fixed text alike, but no text of the row.
            if isinstance(pieces[0], str):
                pieces[0] = pieces[0].lstrip()
            if isinstance(pieces[-1], str):
                pieces[-1] = pieces[-1].rstrip()
            pieces = [chat.before, *pieces, chat.after + unescape(prompt.reply)]
        longest_first = map(re.escape, sorted(special_tokens, key=len, reverse=True))
        pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")  # (?!) matches nothing
        self._pieces = [
            (_parse([piece] if isinstance(piece, str) else piece, pattern), not isinstance(piece, str))
            for piece in pieces
        ]
        self._gap = Segment(prompt.truncation.dropped_turns_mark, False)

    def render(self, turns: Sequence[Turn]) -> list[Segment]:
        """Render a row, without BOS, as alternating plain texts and special tokens of the template."""
        segments: list[Segment] = []
        for special, group in groupby(self._segments(turns), key=lambda segment: segment.special):
            if special:
                segments += group
            elif text := "".join(segment.text for segment in group):
                segments.append(Segment(text, False))
        return segments

    def _segments(self, turns: Sequence[Turn]) -> Iterator[Segment]:
        for parts, per_turn in self._pieces:
            for turn in turns if per_turn else _ONCE:
                if turn.after_gap:
                    yield self._gap
                for part in parts:
                    if isinstance(part, Segment):
                        yield part
                    else:
                        name = "number" if part.name == "turn" else part.name
                        yield Segment(str(getattr(turn, name)), False)


_ONCE = (Turn(0, "", "", ""),)


def _parse(piece: Sequence[str | Field], special_tokens: re.Pattern[str]) -> list[Segment | Field]:
    """Split the fixed texts of a piece at special tokens."""
    parts: list[Segment | Field] = []
    for part in piece:
        if isinstance(part, Field):
            parts.append(part)
        else:
            texts = enumerate(special_tokens.split(part))  # plain texts and special tokens alternate
            parts += [Segment(text, i % 2 == 1) for i, text in texts if text]
    return parts


_MESSAGE = "\ue000message\ue001"
"""Placeholder for the user message in chat templates; private-use characters, so in none of them."""
_DATE = datetime(2024, 7, 26)
"""Date for chat templates that write one (Llama 3.1 and later), the same in training and prediction."""
_OPEN_REASONING = re.compile(r"<think>\s*\Z")
_NO_REASONING = "<think>\n\n</think>\n\n"
"""How Qwen 3's chat template, and others after it, begin a message without reasoning."""


def find_chat_markup(tokenizer: Any, prompt: PromptConfig, bos: str) -> ChatMarkup:
    """Find what the tokenizer's chat template writes before and after a single user message.

    A thinking model is told to answer without reasoning: what its chat template writes for that (Qwen 3: an
    empty reasoning block) is part of the result. A block that the template opens is closed.

    Args:
        tokenizer: tokenizer of transformers.
        prompt: the template.
        bos: what every row starts with anyway; it is not part of the result.

    Raises:
        UserError: the tokenizer has no chat template, or one that can't render a single message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"prompt={prompt.name} needs a chat template, but the model's tokenizer has none.\n"
            "  Choose a template without it (prompt=v2), or a model tuned for chat."
        )
    message = {"role": "user", "content": _MESSAGE}
    if system := unescape((prompt.system or "").strip()):
        with suppress(Exception):  # templates without a system role raise various errors
            messages = [{"role": "system", "content": system}, message]
            before, after = _around_message(tokenizer, messages, bos)
            if system in before:
                return ChatMarkup(before, after, has_system=True)
    try:
        before, after = _around_message(tokenizer, [message], bos)
    except Exception as error:
        raise UserError(
            f"prompt={prompt.name}: the tokenizer's chat template can't render one user message ({error}).\n"
            "  Choose a template without chat markup (prompt=v2)."
        ) from error
    return ChatMarkup(before, after, has_system=False)


def _around_message(tokenizer: Any, messages: list[dict[str, str]], bos: str) -> tuple[str, str]:
    whole = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False,
        date_string=_DATE.strftime("%d %b %Y"), strftime_now=_DATE.strftime,
    )  # fmt: skip
    before, *after = whole.split(_MESSAGE)
    if len(after) != 1:
        raise ValueError(f"it writes the message {len(after)} times")
    return before.removeprefix(bos), _OPEN_REASONING.sub(_NO_REASONING, after[0])
