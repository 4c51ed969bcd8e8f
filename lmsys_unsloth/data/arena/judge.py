"""The person who judges: tastes, and a Bradley–Terry model with ties (Davidson 1970)."""

from __future__ import annotations

import math

from lmsys_unsloth.data.arena.bots import Behaviour
from lmsys_unsloth.data.arena.tasks import Task

FAILURE_WORTH = {"none": 0.0, "refuses": -10.0, "breaks off": -7.5, "wrong language": -5.5}
WRONG = -4.0
ASTRAY = -4.0
WORDY = -3.0
TERSE = -1.5
LENGTH = 1.2
"""Worth of an essay per doubling of its length."""
TIE = 3.0
"""How much a person likes to call two equal answers a tie: 3 / (3 + 2) = 60% of them."""
POSITION = 0.05
"""Slight preference for the answer on the left."""


def worth(task: Task, behaviour: Behaviour) -> float:
    """How much a person likes an answer; what matters is the difference of two."""
    if behaviour.failure != "none":
        return FAILURE_WORTH[behaviour.failure]
    value = 0.0 if behaviour.right else WRONG
    if not behaviour.keeps_form:
        return value + ASTRAY
    if task.topic is not None:
        value += LENGTH * math.log2(min(behaviour.sentences, 40) / 12)
    elif behaviour.style == "terse" and task.sentences != ("{}",):
        value += TERSE
    return value + WORDY * (behaviour.style == "wordy")


def outcome_probabilities(worth_a: float, worth_b: float) -> tuple[float, float, float]:
    """Probabilities that the person prefers a, prefers b, or calls it a tie.

    >>> [round(p, 3) for p in outcome_probabilities(0.0, 8.0)]
    [0.0, 0.946, 0.053]
    """
    half = (worth_a - worth_b + POSITION) / 2
    weights = (math.exp(half), math.exp(-half), TIE)
    total = sum(weights)
    return weights[0] / total, weights[1] / total, weights[2] / total
