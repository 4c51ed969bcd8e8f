"""One check before a run: a line of the table that :mod:`~lmsys_unsloth.cli.preflight` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """Result of one check: a line of the table."""

    name: str
    value: str
    verdict: Verdict = "ok"
    remedy: str = ""


def require(condition: bool, name: str, value: str, remedy: str) -> Check:
    """A check whose verdict is "ok" under a condition and "error" otherwise."""
    return Check(name, value) if condition else Check(name, value, "error", remedy)
