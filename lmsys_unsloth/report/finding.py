"""A statement about the metrics of a run, and what all such statements have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmsys_unsloth.evaluate.bootstrap import Interval

Tone = Literal["plain", "good", "bad"]

LARGE_DIFFERENCE = 0.02
"""Differences in log loss, and margins of error, above this need attention."""


@dataclass(frozen=True)
class Finding:
    """A statement about the metrics; readers must not overlook a ``bad`` one."""

    text: str
    tone: Tone = "plain"
    suggestion: str | None = None
    """What to do about it."""


def between(interval: Interval | None) -> str:
    """An interval in brackets, with minus signs instead of hyphens because lines do not break after them."""
    if interval is None:
        return ""
    return f" (95% interval {interval[0]:.3f} to {interval[1]:.3f})".replace("-", "−")
