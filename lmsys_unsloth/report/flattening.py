"""Nested results as values with one name each, as experiment trackers take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def flatten(prefix: str, values: Any) -> dict[str, Any]:
    """Flatten nested mappings and lists to one level, with names joined by ``/``.

    >>> flatten("eval", {"log_loss": 0.9, "ci": [0.8, 1.0], "baselines": {"uniform": 1.1}})
    {'eval/log_loss': 0.9, 'eval/ci/0': 0.8, 'eval/ci/1': 1.0, 'eval/baselines/uniform': 1.1}
    """
    if isinstance(values, list | tuple):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(f"{prefix}/{name}", value)
    return flat


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among values; truth values are not numbers.

    >>> numbers({"a": 1, "b": "x", "c": True, "d": float("nan")})
    {'a': 1.0}
    """
    found = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {n: float(v) for n, v in found.items() if not isinstance(v, bool) and math.isfinite(v)}
