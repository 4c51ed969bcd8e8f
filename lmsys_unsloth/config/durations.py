"""Durations in a configuration: ``2h``, ``1h30m``, ``45m``, ``90s``, or a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveFloat

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS = (3600.0, 60.0, 1.0)


def seconds(value: Any) -> Any:
    """Return the seconds of a duration; what is no text is returned unchanged.

    >>> seconds("1h30m"), seconds("90s"), seconds(90)
    (5400.0, 90.0, 90.0)

    Raises:
        ValueError: a text that is no duration.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value)
    if not value or found is None:
        raise ValueError("must be a duration such as 2h, 1h30m, 45m or 90s, or a number of seconds")
    return sum(float(part) * unit for part, unit in zip(found.groups(), _UNITS, strict=True) if part)


def in_words(duration: float) -> str:
    """Return a duration in seconds as text, rounded to seconds.

    >>> in_words(5400), in_words(59.6), in_words(125)
    ('1h30m', '1m', '2m5s')
    """
    left, text = round(duration), ""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            text += f"{count}{unit}"
    return text or "0s"


Duration = Annotated[PositiveFloat, BeforeValidator(seconds)]
"""Type of a key that holds a duration; its value is in seconds."""
