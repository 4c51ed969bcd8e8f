"""Rows that can be used, but deserve a look: empty or equal responses, repetitions, contradictions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmsys_unsloth.data.comparison import LABELS, Comparison
from lmsys_unsloth.data.duplicates import content_key, normalised

LONG = 100_000
"""Characters of prompt and responses together above which a row is named."""

UNEVEN = 50
"""Times that one response must be as long as the other one to be named."""

SHORTEST = 500
"""Characters of a response below which no response is called much longer than the other one."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class OddRow:
    """A usable row and one reason to look at it."""

    number: int
    """Number among the usable rows, from 1."""
    id: str
    kind: str
    detail: str


def find_odd_rows(rows: Sequence[Comparison]) -> Iterator[OddRow]:
    """Find every reason to look at a row, row by row."""
    first: dict[bytes, tuple[str, str | None]] = {}
    for number, row in enumerate(rows, 1):
        for kind, detail in _texts(row):
            yield OddRow(number, row.id, kind, detail)
        key = hashlib.sha256("\0".join(content_key(row)).encode()).digest()
        earlier, outcome = first.setdefault(key, (row.id, _winner(row)))
        if earlier == row.id:
            continue
        if outcome != _winner(row):
            yield OddRow(number, row.id, "repeated with another outcome", f"the comparison of row {earlier}")
        else:
            yield OddRow(number, row.id, "repeated", f"the comparison of row {earlier}")


def _texts(row: Comparison) -> Iterator[tuple[str, str]]:
    """Kind and detail of what is odd in the row's own texts."""
    a, b, prompt = "\n".join(row.responses_a), "\n".join(row.responses_b), row.prompt_text
    lengths = {"A": len(a), "B": len(b)}
    if not prompt.strip():
        yield "empty prompt", "no turn of the user has text"
    empty = [name for name, text in (("A", a), ("B", b)) if not text.strip()]
    if empty:
        yield "empty response", f"response {' and '.join(empty)}"
    elif normalised(a) == normalised(b):
        decided = row.label in (0, 1)
        yield "equal responses", f"but {LABELS[row.label or 0].upper()} won" if decided else "no winner"
    elif max(lengths.values()) > max(SHORTEST, UNEVEN * min(lengths.values())):
        yield "very uneven lengths", f"A has {len(a):,} characters, B {len(b):,}"
    if len(prompt) + len(a) + len(b) > LONG:
        yield "very long", f"{len(prompt) + len(a) + len(b):,} characters, most of which will be cut"
    if row.model_a is not None and row.model_a == row.model_b:
        yield "same model twice", row.model_a
    whole = f"{prompt}{a}{b}"
    if "\ufffd" in whole:
        yield "unreadable characters", f"{whole.count(chr(0xFFFD)):,} times U+FFFD"
    if _CONTROL.search(whole):
        yield "control characters", f"{len(_CONTROL.findall(whole)):,} of them"


def _winner(row: Comparison) -> str | None:
    """The winning response, the same for both orders of the responses; None without a label."""
    if row.label is None:
        return None
    return ["\n".join(row.responses_a), "\n".join(row.responses_b), "tie"][row.label]
