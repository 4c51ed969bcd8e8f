"""Bots with traits, and how each trait shows in an answer."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from lmsys_unsloth.data.arena import languages
from lmsys_unsloth.data.arena.essays import write_essay
from lmsys_unsloth.data.arena.languages import ENGLISH
from lmsys_unsloth.data.arena.tasks import Task

Failure = Literal["none", "refuses", "breaks off", "wrong language"]
FAILURES: tuple[Failure, ...] = ("none", "refuses", "breaks off", "wrong language")
Style = Literal["terse", "plain", "wordy"]
STYLES: tuple[Style, ...] = ("terse", "plain", "wordy")
ESSAY_LENGTH = (3.22, 0.75)
"""Log-normal: mean and spread of the logarithm of an essay's number of sentences."""
ESSAY_FACTOR: dict[Style, float] = {"terse": 0.3, "plain": 1.0, "wordy": 1.3}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a bot does with one question. Every value can be seen in the text."""

    failure: Failure = "none"
    right: bool = True
    keeps_form: bool = True
    style: Style = "plain"
    sentences: int = 0
    """Length of an essay; 0 for other tasks."""


@dataclass(frozen=True, slots=True)
class Bot:
    """How often a bot shows each trait."""

    name: str
    failures: tuple[float, float, float, float]
    """Weights of :data:`FAILURES`."""
    wrong: float
    astray: float
    styles: tuple[float, float, float]
    """Weights of :data:`STYLES`."""
    verbosity: float
    """Factor on the length of essays."""


BOTS = (
    Bot("juniper-70b", (81, 8, 5, 6), 0.06, 0.08, (10, 70, 20), 1.3),
    Bot("juniper-8b", (62, 12, 14, 12), 0.18, 0.25, (20, 55, 25), 1.0),
    Bot("basalt-large", (71, 18, 5, 6), 0.08, 0.12, (5, 55, 40), 1.4),
    Bot("basalt-mini", (55, 16, 17, 12), 0.22, 0.32, (25, 50, 25), 0.8),
    Bot("heron-chat-v2", (53, 29, 9, 9), 0.12, 0.22, (10, 50, 40), 1.1),
    Bot("heron-chat-v1", (45, 27, 15, 13), 0.20, 0.35, (15, 45, 40), 0.9),
    Bot("quokka-13b", (48, 9, 20, 23), 0.20, 0.30, (30, 50, 20), 0.7),
    Bot("meridian-34b", (59, 11, 8, 22), 0.15, 0.20, (20, 60, 20), 1.0),
    Bot("tern-3b", (40, 15, 25, 20), 0.29, 0.40, (45, 40, 15), 0.5),
    Bot("lantern-pro", (77, 13, 6, 4), 0.10, 0.15, (8, 62, 30), 1.2),
)


def behave(rng: Random, bot: Bot, task: Task) -> Behaviour:
    """Draw what the bot does with the task."""
    failure = rng.choices(FAILURES, bot.failures)[0]
    style = rng.choices(STYLES, bot.styles)[0]
    sentences = 0
    if task.topic is not None:
        sentences = max(1, round(bot.verbosity * ESSAY_FACTOR[style] * rng.lognormvariate(*ESSAY_LENGTH)))
    if failure != "none":
        return Behaviour(failure, sentences=sentences)
    right = rng.random() >= bot.wrong
    keeps_form = task.astray is None or not right or rng.random() >= bot.astray
    return Behaviour("none", right, keeps_form, style, sentences)


def answer(rng: Random, task: Task, behaviour: Behaviour) -> str:
    """The text of one turn."""
    if behaviour.failure == "refuses":
        return rng.choice(languages.REFUSALS)
    if task.topic is not None:
        return write_essay(rng, task.topic, behaviour)
    if behaviour.failure == "breaks off":
        return rng.choice(languages.BEGINNINGS)
    if behaviour.failure == "wrong language":
        return _in_wrong_language(rng, task)
    if not behaviour.keeps_form and task.astray is not None:
        return task.astray
    content = task.right if behaviour.right else task.wrong
    if behaviour.style == "terse":
        return content
    said = rng.choice(task.sentences).format(content)
    if behaviour.style == "plain":
        return said
    return f"{rng.choice(task.language.openings)} {said} {rng.choice(task.language.closings)}"


def _in_wrong_language(rng: Random, task: Task) -> str:
    if task.language is not ENGLISH:
        return rng.choice(ENGLISH.answers).format(task.right)
    language = rng.choices(languages.FOREIGN, languages.FOREIGN_WEIGHTS)[0]
    said = rng.choice(language.answers).format(task.right)
    return f"{said} {rng.choice(language.closings)}" if rng.random() < 0.7 else said
