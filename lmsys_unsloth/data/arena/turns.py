"""What a person asks, turn by turn."""

from __future__ import annotations

import dataclasses
from random import Random

from lmsys_unsloth.data.arena import tasks
from lmsys_unsloth.data.arena import vocabulary as words
from lmsys_unsloth.data.arena.essay_tasks import essay
from lmsys_unsloth.data.arena.tasks import Maker, Task

Makers = tuple[tuple[Maker, int], ...]
"""Kinds of task, each with its weight."""

SHORT: Makers = (
    (tasks.arithmetic, 16),
    (tasks.conversion, 12),
    (tasks.fact, 18),
    (tasks.one_word, 10),
    (tasks.listing, 12),
    (tasks.sorting, 6),
    (tasks.rewriting, 7),
    (tasks.foreign_sum, 5),
    (tasks.translation, 5),
    (tasks.code, 4),
)
LONG: Makers = (*SHORT, (essay, 250))


def opening(rng: Random, makers: Makers) -> Task:
    """The first turn of a conversation, with the politeness that people add."""
    task = _draw(rng, makers)
    before = rng.choice(words.GREETINGS) if rng.random() < 0.15 else ""
    after = rng.choice(words.CLOSINGS) if rng.random() < 0.1 else ""
    return _reworded(task, before + task.prompt + after)


def following(rng: Random, before: Task, makers: Makers) -> Task:
    """A later turn: it builds on the answer before it where that can be, else it asks something new."""
    if before.right.isdecimal() and rng.random() < 0.8:
        value, step = int(before.right), rng.randrange(2, 50)
        phrase, result = rng.choice(
            (
                ("Now add {}.", value + step),
                ("And {} more than that?", value + step),
                ("And double that?", value * 2),
            )
        )
        return Task(phrase.format(step), str(result), str(tasks.near_miss(rng, result)))
    if before.topic is not None and rng.random() < 0.7:
        aspect = rng.choice(words.TOPICS[before.topic].split())
        phrase = rng.choice(
            ("Say more about {}.", "And what about {}?", "Can you go deeper on {}?", "Why {}?")
        )
        return Task(phrase.format(aspect), "", "", topic=before.topic)
    task = _draw(rng, makers)
    lead = rng.choice(("Next: ", "Another one: ", "", "And now: "))
    return _reworded(task, lead + task.prompt)


def _draw(rng: Random, makers: Makers) -> Task:
    return rng.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0](rng)


def _reworded(task: Task, prompt: str) -> Task:
    return dataclasses.replace(task, prompt=prompt)
