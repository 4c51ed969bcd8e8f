"""What a training reports its numbers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class MetricLogger(Protocol):
    """Receives the numbers of a training while it runs."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record values at an optimiser step: ``train/loss``, ``train/learning_rate``."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Record final values: ``train/tokens_per_second``."""
