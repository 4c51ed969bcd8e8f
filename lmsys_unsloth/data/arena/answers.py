"""Answers of the simulated arena: what ten models write, and the probabilities of a person's preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Literal

from lmsys_unsloth.data.arena import vocabulary as words
from lmsys_unsloth.data.arena.conversations import write_text
from lmsys_unsloth.data.arena.questions import Question
from lmsys_unsloth.data.arena.vocabulary import ENGLISH, Language

Failure = Literal["none", "refuses", "breaks off", "wrong language"]
FAILURES: tuple[Failure, ...] = ("none", "refuses", "breaks off", "wrong language")
Style = Literal["terse", "plain", "wordy"]
STYLES: tuple[Style, ...] = ("terse", "plain", "wordy")
ESSAY_LENGTH = (3.22, 0.75)
"""Number of sentences in an essay: mean and standard deviation of its logarithm (log-normal)."""
ESSAY_FACTOR: dict[Style, float] = {"terse": 0.3, "plain": 1.0, "wordy": 1.3}

FAILURE_QUALITY = {"none": 0.0, "refuses": -10.0, "breaks off": -7.5, "wrong language": -5.5}
"""Quality of an answer with this failure; the constants below are added to the quality of the others."""
WRONG = -4.0
OTHER_FORM = -4.0
WORDY = -3.0
TERSE = -1.5
LENGTH = 1.2
"""Quality gained by each doubling of an essay's length."""
TIE = 3.0
"""Weight of a tie: two equally good answers tie with probability 3 / (3 + 2) = 60%."""
POSITION = 0.05
"""Quality that a response gains by being response A."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one question is answered. Every value can be seen in the text."""

    failure: Failure = "none"
    right: bool = True
    keeps_form: bool = True
    style: Style = "plain"
    sentences: int = 0
    """Length of an essay; 0 for a short answer."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model that answers, with the frequency of each of its traits."""

    name: str
    failures: tuple[float, float, float, float]
    """Weights of :data:`FAILURES`."""
    wrong: float
    """Probability of a wrong answer."""
    other_form: float
    """Probability of a right answer in another form than the requested one."""
    styles: tuple[float, float, float]
    """Weights of :data:`STYLES`."""
    verbosity: float
    """Factor on the length of essays."""


MODELS = (
    ChatModel("juniper-70b", (81, 8, 5, 6), 0.06, 0.08, (10, 70, 20), 1.3),
    ChatModel("juniper-8b", (62, 12, 14, 12), 0.18, 0.25, (20, 55, 25), 1.0),
    ChatModel("basalt-large", (71, 18, 5, 6), 0.08, 0.12, (5, 55, 40), 1.4),
    ChatModel("basalt-mini", (55, 16, 17, 12), 0.22, 0.32, (25, 50, 25), 0.8),
    ChatModel("heron-chat-v2", (53, 29, 9, 9), 0.12, 0.22, (10, 50, 40), 1.1),
    ChatModel("heron-chat-v1", (45, 27, 15, 13), 0.20, 0.35, (15, 45, 40), 0.9),
    ChatModel("quokka-13b", (48, 9, 20, 23), 0.20, 0.30, (30, 50, 20), 0.7),
    ChatModel("meridian-34b", (59, 11, 8, 22), 0.15, 0.20, (20, 60, 20), 1.0),
    ChatModel("tern-3b", (40, 15, 25, 20), 0.29, 0.40, (45, 40, 15), 0.5),
    ChatModel("lantern-pro", (77, 13, 6, 4), 0.10, 0.15, (8, 62, 30), 1.2),
)


def draw_behaviour(rng: Random, model: ChatModel, question: Question) -> Behaviour:
    """Draw how a model answers a question."""
    failure = rng.choices(FAILURES, model.failures)[0]
    style = rng.choices(STYLES, model.styles)[0]
    sentences = 0
    if question.topic is not None:
        factor = model.verbosity * ESSAY_FACTOR[style]
        sentences = max(1, round(factor * rng.lognormvariate(*ESSAY_LENGTH)))
    if failure != "none":
        return Behaviour(failure, sentences=sentences)
    right = rng.random() >= model.wrong
    keeps_form = question.other_form is None or not right or rng.random() >= model.other_form
    return Behaviour("none", right, keeps_form, style, sentences)


def write_answer(rng: Random, question: Question, behaviour: Behaviour) -> str:
    """Write the answer to one question."""
    if behaviour.failure == "refuses":
        return rng.choice(words.REFUSALS)
    if question.topic is not None:
        return _write_essay(rng, question.topic, behaviour)
    if behaviour.failure == "breaks off":
        return rng.choice(words.BEGINNINGS)
    if behaviour.failure == "wrong language":
        return _in_wrong_language(rng, question)
    if not behaviour.keeps_form and question.other_form is not None:
        return question.other_form
    content = question.right if behaviour.right else question.wrong
    if behaviour.style == "terse":
        return content
    sentence = rng.choice(question.sentences).format(content)
    if behaviour.style == "plain":
        return sentence
    return f"{rng.choice(question.language.openings)} {sentence} {rng.choice(question.language.closings)}"


def _draw_foreign_language(rng: Random) -> Language:
    return rng.choices(words.FOREIGN, [language.frequency for language in words.FOREIGN])[0]


def _in_wrong_language(rng: Random, question: Question) -> str:
    if question.language is not ENGLISH:
        return rng.choice(ENGLISH.answers).format(question.right)
    language = _draw_foreign_language(rng)
    sentence = rng.choice(language.answers).format(question.right)
    return f"{sentence} {rng.choice(language.closings)}" if rng.random() < 0.7 else sentence


def _write_essay(rng: Random, topic: str, behaviour: Behaviour) -> str:
    """Write an essay on the topic or, depending on the behaviour, on another one, broken off, …"""
    if behaviour.failure == "wrong language":
        return _write_foreign_essay(rng, topic, behaviour.sentences)
    if not behaviour.right:
        topic = rng.choice([other for other in words.TOPICS if other != topic])
    text = write_text(rng, topic, behaviour.sentences)
    if behaviour.failure == "breaks off":
        part = text[: max(20, int(len(text) * rng.uniform(0.3, 0.9)))]
        return part.rstrip(" .,:;*\n0123456789")
    if behaviour.style == "wordy":
        return f"{rng.choice(ENGLISH.openings)} {text}\n\n{rng.choice(ENGLISH.closings)}"
    return text


def _write_foreign_essay(rng: Random, topic: str, sentences: int) -> str:
    language = _draw_foreign_language(rng)
    aspects = rng.sample(words.TOPICS[topic], min(max(sentences // 3, 1), 5))
    parts = [rng.choice(language.openings)]
    parts += [rng.choice(language.answers).format(aspect) for aspect in aspects]
    parts.append(rng.choice(language.closings))
    return " ".join(parts)


def quality(question: Question, behaviour: Behaviour) -> float:
    """Compute the quality of an answer; preferences depend on the difference of two qualities only."""
    if behaviour.failure != "none":
        return FAILURE_QUALITY[behaviour.failure]
    value = 0.0 if behaviour.right else WRONG
    if not behaviour.keeps_form:
        return value + OTHER_FORM
    if question.topic is not None:
        value += LENGTH * math.log2(min(behaviour.sentences, 40) / 12)
    elif behaviour.style == "terse" and question.sentences != ("{}",):
        value += TERSE
    return value + WORDY * (behaviour.style == "wordy")


def outcome_probabilities(quality_a: float, quality_b: float) -> tuple[float, float, float]:
    """Compute the probabilities of the three outcomes: a Bradley-Terry model with ties (Davidson 1970).

    >>> [round(p, 3) for p in outcome_probabilities(0.0, 8.0)]
    [0.0, 0.946, 0.053]
    """
    half = (quality_a - quality_b + POSITION) / 2
    weights = (math.exp(half), math.exp(-half), TIE)
    total = sum(weights)
    return weights[0] / total, weights[1] / total, weights[2] / total
