"""The language of prompt templates: fixed text, and per-turn pieces with placeholders.

A placeholder is a name in braces, ``{prompt}``, ``{response_a}``, ``{response_b}`` or ``{turn}``
(the turn's number, from 1). ``{{prompt}}`` writes the name in braces itself. Any other brace is
plain text, so JSON in a template needs no care; and texts are put in place, never searched,
so braces in a conversation mean nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TEXT_FIELDS = ("prompt", "response_a", "response_b")
"""The placeholders that stand for texts of the conversation."""
FIELDS = (*TEXT_FIELDS, "turn")

_BRACED = re.compile(r"\{\{(?P<literal>\w+)\}\}|\{(?P<field>\w+)\}")


@dataclass(frozen=True, slots=True)
class Field:
    """A placeholder: where a text of the conversation goes."""

    name: str


def split(piece: str) -> list[str | Field]:
    """Fixed texts and placeholders of a per-turn piece, in order.

    >>> split('User: {prompt} {{x}}\\n')
    ['User: ', Field(name='prompt'), ' {x}\\n']
    """
    parts: list[str | Field] = []
    fixed, end = "", 0
    for match in _BRACED.finditer(piece):
        fixed += piece[end : match.start()]
        end = match.end()
        if match["literal"]:
            fixed += "{" + match["literal"] + "}"
            continue
        parts += [fixed] if fixed else []
        parts.append(Field(match["field"]))
        fixed = ""
    fixed += piece[end:]
    return parts + ([fixed] if fixed else [])


def unescaped(text: str) -> str:
    """A text that belongs to no turn, with ``{{prompt}}`` turned into ``{prompt}``."""
    return _BRACED.sub(lambda match: match[0][1:-1] if match["literal"] else match[0], text)


def form_problems(body: Sequence[object]) -> list[str]:
    """Items of a template's body, as they stand in YAML, that are neither a text nor ``each_turn: text``."""
    return [
        f"item {number} is {item!r}, but must be a text or `each_turn: text`"
        for number, item in enumerate(body)
        if not isinstance(item, str) and (not isinstance(item, dict) or _per_turn_text(item) is None)
    ]


def problems(body: Sequence[str | Mapping[str, str]]) -> list[str]:
    """What is wrong with the placeholders of a template's body."""
    found: list[str] = []
    for number, item in enumerate(body):
        if isinstance(item, str):
            found += fixed_text_problems(f"item {number}", item)
        else:
            found += _per_turn_problems(f"item {number}", item["each_turn"])
    return found + _coverage_problems([item["each_turn"] for item in body if not isinstance(item, str)])


def _per_turn_text(item: Mapping[object, object]) -> str | None:
    text = item.get("each_turn")
    return text if isinstance(text, str) and text and len(item) == 1 else None


def fixed_text_problems(where: str, text: str) -> list[str]:
    """Placeholders in a text that belongs to no turn."""
    fields = [part.name for part in split(text) if isinstance(part, Field)]
    return [
        f"{where} holds {{{name}}}, which has a meaning only inside `each_turn: …`"
        f" (write {{{{{name}}}}} for the plain characters)"
        for name in fields
        if name in FIELDS
    ]


def _per_turn_problems(where: str, piece: str) -> list[str]:
    found = []
    for part in split(piece):
        if isinstance(part, Field) and part.name not in FIELDS:
            close = difflib.get_close_matches(part.name, FIELDS, n=1)
            hint = f"did you mean {{{close[0]}}}?" if close else f"known: {', '.join(map(_braced, FIELDS))}"
            found.append(
                f"{where} holds {{{part.name}}}, which is no placeholder; {hint}"
                f" (write {{{{{part.name}}}}} for the plain characters)"
            )
    return found


def _coverage_problems(per_turn: Sequence[str]) -> list[str]:
    """Each text must be shown; both answers equally often, or the template itself favours one."""
    counts = field_counts(per_turn)
    missing = [_braced(name) for name in TEXT_FIELDS if not counts[name]]
    if missing:
        return [f"no `each_turn` item holds {' or '.join(missing)}, so the model would not see it"]
    if counts["response_a"] != counts["response_b"]:
        return [
            f"{{response_a}} stands there {counts['response_a']} times and {{response_b}} "
            f"{counts['response_b']} times; both answers must be shown equally often"
        ]
    return []


def field_counts(per_turn: Sequence[str]) -> dict[str, int]:
    """How often each text of the conversation is shown.

    >>> field_counts(["U: {prompt}\\nA: {response_a}\\n", "U: {prompt}\\nB: {response_b}\\n"])
    {'prompt': 2, 'response_a': 1, 'response_b': 1}
    """
    names = [part.name for piece in per_turn for part in split(piece) if isinstance(part, Field)]
    return {name: names.count(name) for name in TEXT_FIELDS}


def _braced(name: str) -> str:
    return "{" + name + "}"
