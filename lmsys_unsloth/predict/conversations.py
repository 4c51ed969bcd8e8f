"""Rows that a program passes to a predictor, as comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data import cells
from lmsys_unsloth.data.cells import CellError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import TEXTS

Turns = str | Sequence[str] | Sequence[Mapping[str, Any]]
"""A text, the texts of several turns, or chat messages with ``role`` and ``content``."""

_SHOWN = 10


def to_comparisons(rows: Iterable[Mapping[str, Any]]) -> list[Comparison]:
    """Convert rows with the keys ``prompt``, ``response_a`` and ``response_b``; others are ignored.

    A prompt is one text, the texts of all user turns, or chat messages that end with the user's. With
    messages, the assistant's earlier turns are part of both conversations, and the text of a system message
    is put before the first user turn. A response is one text (the answer to the last turn of a prompt of one
    turn or of messages), the texts of all answers, or the assistant's messages.

    >>> [row] = to_comparisons([{"prompt": "Hi", "response_a": "Hello!", "response_b": "Yo"}])
    >>> row.prompts, row.responses_a, row.responses_b
    (('Hi',), ('Hello!',), ('Yo',))

    Raises:
        UserError: lists the rows that are none of this.
    """
    found: list[Comparison] = []
    problems: list[str] = []
    for number, row in enumerate(rows):
        try:
            found.append(to_comparison(row, str(number)))
        except CellError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        title = f"{len(problems)} of {len(problems) + len(found)} rows can't be compared:"
        raise UserError("\n  ".join([title, *problems[:_SHOWN], *more]))
    return found


def to_comparison(row: Mapping[str, Any], row_id: str) -> Comparison:
    """Convert one row, see :func:`to_comparisons`.

    Raises:
        CellError: says what is wrong with it.
    """
    if not isinstance(row, Mapping):
        raise CellError("not a row", f"{cells.shorten(row)} is not a mapping with {', '.join(TEXTS)}")
    missing = [name for name in TEXTS if name not in row]
    if missing:
        raise CellError("missing", f"lacks {', '.join(missing)}; it needs {', '.join(TEXTS)}")
    prompts, earlier = _prompt(row["prompt"])
    first, second = ((*earlier, *_texts(row[name], name, "assistant")) for name in TEXTS[1:])
    return Comparison(row_id, *cells.aligned(prompts, first, second, TEXTS))


def _prompt(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """User turns, and the assistant's answers to all but the last if the prompt holds them."""
    if not is_messages(value):
        return _texts(value, "prompt", "user"), ()
    messages = list(value)
    system = [message for message in messages if message.get("role") == "system"]
    if system and (len(system) > 1 or messages[0] is not system[0]):
        raise CellError("roles", "prompt may have one system message, at its beginning")
    turns = messages[len(system) :]
    if not turns or turns[-1].get("role") != "user":
        raise CellError("roles", "prompt is a list of messages that does not end with the user's")
    closed = [*turns, {"role": "assistant", "content": ""}]  # dialogue() takes whole exchanges
    prompts, answers = cells.dialogue(closed, "prompt", Counter())
    if system:
        content = cells.joined_parts(system[0].get("content"), "prompt")
        text = cells.turn(content, "the system message", 0, Counter())
        prompts = (f"{text}\n\n{prompts[0]}", *prompts[1:])
    return prompts, answers[:-1]


def _texts(value: Any, name: str, role: str) -> tuple[str, ...]:
    if is_messages(value):
        roles = {message.get("role") for message in value}
        if roles != {role}:
            found = ", ".join(sorted(map(str, roles)))
            raise CellError("roles", f"{name} must hold messages of the {role}; it has {found}")
        value = [cells.joined_parts(message.get("content"), name) for message in value]
    turns = [value] if isinstance(value, str) else value
    if not isinstance(turns, Sequence):
        raise CellError("not text", f"{name} is {cells.shorten(value)}, not text, texts or messages")
    return tuple(cells.turn(text, name, index, Counter()) for index, text in enumerate(turns))


def is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, not a text or a list of texts."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(message, Mapping) for message in value)
    )
