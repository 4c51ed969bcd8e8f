"""Placeholders in prompt templates.

``{prompt}``, ``{response_a}``, ``{response_b}`` and ``{turn}`` (the turn's number, from 1) stand for the
texts of a turn. ``{{prompt}}`` is the plain text ``{prompt}``. Every other brace is plain text, so JSON
in a template needs no escaping: :class:`string.Formatter` and :class:`string.Template` can't parse that,
hence the small parser here. The inserted texts are not parsed, so braces in a conversation mean nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TEXT_FIELDS = ("prompt", "response_a", "response_b")
"""Placeholders for the texts of the conversation."""
FIELDS = (*TEXT_FIELDS, "turn")
"""All placeholders."""

_BRACED = re.compile(r"(\{\{\w+\}\}|\{\w+\})")


@dataclass(frozen=True, slots=True)
class Field:
    """A placeholder."""

    name: str


def split(piece: str) -> list[str | Field]:
    """Split a per-turn piece into fixed texts and placeholders, in order.

    >>> split('User: {prompt} {{x}}\\n')
    ['User: ', Field(name='prompt'), ' {x}\\n']
    """
    fixed, *rest = _BRACED.split(piece)
    parts: list[str | Field] = []
    for braced, after in zip(rest[::2], rest[1::2], strict=True):
        if braced.startswith("{{"):
            fixed += braced[1:-1] + after
        else:
            parts += [fixed, Field(braced[1:-1])]
            fixed = after
    return [part for part in (*parts, fixed) if part]


def unescape(text: str) -> str:
    """Replace ``{{prompt}}`` by ``{prompt}`` in a fixed text."""
    return re.sub(r"\{\{(\w+)\}\}", r"{\1}", text)


def form_problems(body: Sequence[object]) -> list[str]:
    """Items of a template's body, as read from YAML, that are neither a text nor ``each_turn: text``."""
    return [
        f"item {number} is {item!r}, but must be a text or `each_turn: text`"
        for number, item in enumerate(body)
        if not isinstance(item, str) and not _is_per_turn(item)
    ]


def _is_per_turn(item: object) -> bool:
    text = item.get("each_turn") if isinstance(item, dict) and len(item) == 1 else None
    return isinstance(text, str) and text != ""


def problems(body: Sequence[str | Mapping[str, str]]) -> list[str]:
    """Problems with the placeholders in a template's body, one line each."""
    found: list[str] = []
    for number, item in enumerate(body):
        if isinstance(item, str):
            found += fixed_text_problems(f"item {number}", item)
        else:
            found += _unknown_fields(f"item {number}", item["each_turn"])
    return found + _coverage_problems([item["each_turn"] for item in body if not isinstance(item, str)])


def fixed_text_problems(where: str, text: str) -> list[str]:
    """Placeholders in a text outside ``each_turn``, where they have no meaning."""
    return [
        f"{where} holds {{{name}}}, which has a meaning only inside `each_turn: …`"
        f" (write {{{{{name}}}}} for the plain characters)"
        for name in _names(text)
        if name in FIELDS
    ]


def _unknown_fields(where: str, piece: str) -> list[str]:
    found: list[str] = []
    for name in _names(piece):
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            hint = f"did you mean {{{close[0]}}}?" if close else f"known: {known}"
            found.append(
                f"{where} holds {{{name}}}, which is no placeholder; {hint}"
                f" (write {{{{{name}}}}} for the plain characters)"
            )
    return found


def _coverage_problems(per_turn: Sequence[str]) -> list[str]:
    """Check that no text is missing and that both responses appear equally often."""
    counts = count_fields(per_turn)
    missing = [f"{{{name}}}" for name in TEXT_FIELDS if not counts[name]]
    if missing:
        return [f"no `each_turn` item holds {' or '.join(missing)}, so the model would not see it"]
    if counts["response_a"] != counts["response_b"]:
        return [
            f"{{response_a}} appears {counts['response_a']} times and {{response_b}} "
            f"{counts['response_b']} times; both must appear equally often"
        ]
    return []


def count_fields(per_turn: Sequence[str]) -> dict[str, int]:
    """Count the placeholders of each text of the conversation.

    >>> count_fields(["U: {prompt}\\nA: {response_a}\\n", "U: {prompt}\\nB: {response_b}\\n"])
    {'prompt': 2, 'response_a': 1, 'response_b': 1}
    """
    names = [name for piece in per_turn for name in _names(piece)]
    return {name: names.count(name) for name in TEXT_FIELDS}


def _names(piece: str) -> list[str]:
    return [part.name for part in split(piece) if isinstance(part, Field)]
