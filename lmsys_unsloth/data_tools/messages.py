"""Conversations as public sets store them: plain text, lists of messages, transcripts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lmsys_unsloth.data.cells import CellError, encodable, shorten

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "system": "system",
}  # fmt: skip
"""Names of the speakers in public sets."""

_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")

Message = tuple[str, str]
"""Role (``user``, ``assistant`` or ``system``) and text."""


def dialogue(prompt: Any, response: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Turns of the user and responses of one side of a comparison.

    Args:
        prompt: cell with what precedes the response; ignored if the response has the whole conversation.
        response: cell with the response.
        name: column of the response, for messages.

    >>> dialogue("Hi", "Hello!", "chosen")
    (('Hi',), ('Hello!',))
    >>> dialogue(None, "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "chosen")
    (('Hi',), ('Hello!',))

    Raises:
        CellError: no texts, or roles that do not alternate.
    """
    said = read_messages(response, "assistant", name)
    if said and said[0][0] == "assistant":
        said = [*read_messages(prompt, "user", "the prompt"), *said]
    turns = _joined(said)
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(roles) // 2):
        found = ", ".join(roles[:6]) or "nothing"
        raise CellError("roles", f"{name} must alternate user, assistant and end with it; it has {found}")
    texts = [text for _, text in turns]
    return tuple(texts[0::2]), tuple(texts[1::2])


def read_messages(cell: Any, role: str, name: str) -> list[Message]:
    """Messages of a cell; plain text is one message of ``role``.

    Raises:
        CellError: the cell holds neither text nor messages.
    """
    if cell is None:
        return []
    if isinstance(cell, str):
        if cell.lstrip().startswith("[{"):  # CSV files hold lists as JSON
            try:
                return read_messages(json.loads(cell), role, name)
            except json.JSONDecodeError:
                pass
        parts = _TRANSCRIPT.split(cell)
        if len(parts) > 1 and not parts[0].strip():
            speakers = [ROLES[speaker.lower()] for speaker in parts[1::2]]
            return [(who, encodable(text)) for who, text in zip(speakers, parts[2::2], strict=True)]
        return [(role, encodable(cell))]
    if isinstance(cell, list) and all(isinstance(message, Mapping) for message in cell):
        return [_message(message, name) for message in cell]
    raise CellError("not text", f"{name} is {shorten(cell)}, neither text nor a list of messages")


def _message(message: Mapping[str, Any], name: str) -> Message:
    speaker = str(message.get("role", message.get("from", ""))).lower()
    text = message.get("content", message.get("value"))
    if isinstance(text, list):  # parts of a message: [{"type": "text", "text": "Hi"}]
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in text]
        text = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if speaker not in ROLES or not isinstance(text, str):
        raise CellError("not text", f"{name} has the message {shorten(dict(message))}")
    return ROLES[speaker], encodable(text)


def _joined(messages: list[Message]) -> list[Message]:
    """Put a system message before the user's text, and successive messages of one speaker together."""
    turns: list[Message] = []
    for role, text in messages:
        role = "user" if role == "system" else role
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
        else:
            turns.append((role, text))
    return turns
