"""Conversion of single cells of a source to values; a :class:`CellError` says what is wrong with a cell.

What is done to text: a null turn becomes an empty text; UTF-16 surrogate pairs are joined; a lone
surrogate, which no tokenizer can encode, becomes U+FFFD. These are counted. Nothing else changes:
not white space, not line ends, not Unicode normalisation, not text that spells special tokens.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Triple = tuple[float, float, float]
Turns = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""User turns, responses A and responses B, equally many of each."""

BOTH_BAD = ("tie (bothbad)", "both_bad")
"""Ties between two bad responses."""
OUTCOMES = {"model_a": 0, "model_b": 1, "tie": 2, **dict.fromkeys(BOTH_BAD, 2)}
SUM_TOLERANCE = 1e-3
"""Allowed distance of a sum of probabilities from 1; those in files may be rounded."""
ROUNDING = 1e-12
"""Distance from 1 up to which probabilities are not renormalised, so that they stay unchanged."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Reason why a row can't be used: ``kind`` is counted, ``detail`` appears in messages."""

    kind: str
    detail: str
    row_id: str = ""
    """Id of the row as far as it is known."""


class CellError(ValueError):
    """A cell that can't be used; ``kind`` as in :class:`Problem`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(kind, detail)


def encodable(text: str) -> str:
    """Join surrogate pairs, replace lone surrogates by U+FFFD; the same object when there are none.

    >>> encodable("\\ud83d\\ude00 \\ud83d")
    '😀 \\ufffd'
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty, or holds what other programs write for an empty one."""
    return cell is None or str(cell).strip().lower() in ("", "nan", "none", "null", "<na>")


def identifier(cell: Any) -> str:
    """Read a row's id as text."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # pandas writes integer ids of a column with gaps as 7.0
    text = "" if cell is None else encodable(str(cell))
    if is_missing(text):
        raise CellError("id missing", f"id is {text!r}; every row needs its own")
    return text


def optional_text(cell: Any) -> str | None:
    """Read text; None for an empty cell."""
    return None if cell is None or cell == "" else encodable(str(cell))


def turn(cell: Any, name: str, index: int, notes: Counter[str]) -> str:
    """Read the text of one turn; null is empty text."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        notes["null_turns"] += 1
        return ""
    if not isinstance(cell, str):
        raise CellError("not text", f"turn {index + 1} of {name} is {shorten(cell)}, not text")
    if not cell:
        notes["empty_turns"] += 1
    text = encodable(cell)
    if text is not cell:
        notes["repaired_surrogates"] += 1
    return text


def turn_list(cell: Any, name: str, notes: Counter[str]) -> tuple[str, ...]:
    """Read a JSON list of texts and nulls; Parquet and JSONL may hold the list itself."""
    turns = _from_json(cell, name, "not a JSON list", "a JSON list of turns")
    if not isinstance(turns, list):
        raise CellError("not a JSON list", f"{name} is {shorten(cell)}, not a JSON list of turns")
    return tuple(turn(text, name, index, notes) for index, text in enumerate(turns))


def dialogue(cell: Any, name: str, notes: Counter[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read user and assistant texts: ``[{"role": "user", "content": "Hi"}, {"role": "assistant", …}, …]``."""
    messages = _from_json(cell, name, "not a conversation", "a list of messages")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise CellError("not a conversation", f"{name} is {shorten(cell)}, not a list of messages")
    roles = [message.get("role") for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        found = ", ".join(map(str, roles[:6]))
        raise CellError("roles", f"{name} must alternate user, assistant; it has {found}")
    contents = [joined_parts(message.get("content"), name) for message in messages]
    texts = [turn(content, name, index // 2, notes) for index, content in enumerate(contents)]
    return tuple(texts[0::2]), tuple(texts[1::2])


def joined_parts(content: Any, name: str) -> Any:
    """Join a message that is stored in parts: ``[{"type": "text", "text": "Hi", "image": null}]``."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise CellError("not text", f"{name} has a part of type {kind}; only text can be compared")
    return "".join(part.get("text") or "" for part in content)


def _from_json(cell: Any, name: str, kind: str, wanted: str) -> Any:
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CellError(kind, f"{name} is not {wanted}: {error}") from None


def aligned(
    prompts: tuple[str, ...], responses_a: tuple[str, ...], responses_b: tuple[str, ...], names: Sequence[str]
) -> Turns:
    """Return the three lists of turns if they are equally long and not empty."""
    counts = [len(prompts), len(responses_a), len(responses_b)]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in zip(names, counts, strict=True))
        raise CellError("unequal turn counts", f"turn counts differ: {listed}")
    if not prompts:
        raise CellError("no turns", "the conversation has no turns")
    return prompts, responses_a, responses_b


def outcome(cell: Any) -> int:
    """Read the label from a cell that names the winner."""
    if not isinstance(cell, str) or cell not in OUTCOMES:
        raise CellError("no winner", f"winner is {shorten(cell)}; it must be one of {', '.join(OUTCOMES)}")
    return OUTCOMES[cell]


def outcome_of_flags(record: Mapping[str, Any], columns: Sequence[str]) -> int:
    """Read the label from three cells, exactly one of which is 1."""
    flags = [_number(record.get(name)) for name in columns]
    if any(flag not in (0, 1) for flag in flags):
        found = ", ".join(shorten(record.get(name)) for name in columns)
        raise CellError("no winner", f"{', '.join(columns)} are {found}; each must be 0 or 1")
    if sum(flags) != 1:
        kind = "no winner" if sum(flags) == 0 else "two winners"
        raise CellError(kind, f"{', '.join(columns)} are {[int(flag) for flag in flags]}; one must be 1")
    return flags.index(1)


def distribution(record: Mapping[str, Any], columns: Sequence[str], counts: bool) -> Triple:
    """Read three probabilities, or three counts, which are converted to probabilities."""
    numbers = [_number(record.get(name)) for name in columns]
    total = sum(numbers)
    found = f"{', '.join(columns)} are {', '.join(shorten(record.get(name)) for name in columns)}"
    if not math.isfinite(total) or min(numbers) < 0 or total == 0:
        raise CellError("not probabilities", f"{found}; they must be numbers, none negative, not all 0")
    if not counts and abs(total - 1) > SUM_TOLERANCE:
        raise CellError("not probabilities", f"{found}; they must sum to 1")
    if abs(total - 1) > ROUNDING:
        numbers = [number / total for number in numbers]
    a, b, tie = numbers
    return a, b, tie


def most_likely(soft: Triple) -> int:
    """Return the label of a row with soft labels only; equal largest probabilities make a tie."""
    best = [index for index, value in enumerate(soft) if value == max(soft)]
    return best[0] if len(best) == 1 else 2


def _number(cell: Any) -> float:
    """The cell as a number; NaN when it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def shorten(cell: Any) -> str:
    """The cell, shortened for a message."""
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."
