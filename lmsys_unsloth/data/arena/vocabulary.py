"""Words, facts and phrases of the simulated arena, read from ``vocabulary.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Language:
    """Phrases of one language."""

    name: str
    answers: tuple[str, ...]
    """Sentences around the bare answer ``{}``."""
    openings: tuple[str, ...]
    """Sentences without content, put before an answer."""
    closings: tuple[str, ...]
    """Sentences without content, put after an answer."""
    sums: tuple[str, ...] = ()
    """Questions for the sum of two numbers."""
    frequency: int = 0
    """Weight of this language among the answers in a wrong language."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A table of answers, questions for one of them and a sentence that states it."""

    prompts: tuple[str, ...]
    sentence: str
    answers: dict[str, str]


def _frozen(value: Any) -> Any:
    """A YAML value with tuples in place of lists."""
    if isinstance(value, dict):
        return {key: _frozen(part) for key, part in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_TEXT = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
_DATA: dict[str, Any] = _frozen(yaml.load(_TEXT, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _texts(name: str) -> tuple[str, ...]:
    texts: tuple[str, ...] = _DATA[name]
    return texts


def _table(name: str) -> dict[str, tuple[str, ...]]:
    return {key: tuple(words.split()) for key, words in _DATA[name].items()}


NAMES, THINGS, SUBJECTS = _texts("names"), _texts("things"), _texts("subjects")
OBJECTS, PLACES, REFUSALS = _texts("objects"), _texts("places"), _texts("refusals")
GREETINGS, CLOSINGS = _texts("greetings"), _texts("closings")
BEGINNINGS = _texts("beginnings")
"""Answers that break off."""
VERBS: dict[str, str] = _DATA["verbs"]
"""Present tense → past tense."""
FACTS = tuple(Fact(**entry) for entry in _DATA["facts"])
CAPITALS = FACTS[0].answers
CATEGORIES = _table("categories")
TOPICS = _table("topics")
"""Subjects of essays, each with six words that such an essay is about."""
ESSAYS: dict[str, tuple[str, ...]] = _DATA["essays"]
"""Templates for questions that need an essay, and for the sentences of an essay."""
ENGLISH, *FOREIGN = (Language(**entry) for entry in _DATA["languages"])
TRANSLATIONS = _table("translations")
"""English words in the first four of :data:`FOREIGN`."""
