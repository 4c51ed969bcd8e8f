"""Conversations of the simulated arena: opening and following questions, and text about a topic."""

from __future__ import annotations

import dataclasses
from random import Random

from lmsys_unsloth.data.arena import questions
from lmsys_unsloth.data.arena import vocabulary as words
from lmsys_unsloth.data.arena.questions import Maker, Question

TEXT_GIVEN = 0.12
"""Share of essay questions that come with a text."""


class _Sentences:
    """Sentences about one topic; a template is used again only after all others of its kind."""

    def __init__(self, rng: Random, topic: str) -> None:
        self.rng = rng
        self.topic = topic
        self.unused: dict[str, list[str]] = {}

    def draw(self, kind: str) -> str:
        unused = self.unused.setdefault(kind, [])
        if not unused:
            unused += reversed(self.rng.sample(words.ESSAYS[kind], len(words.ESSAYS[kind])))
        a, b = self.rng.sample(words.TOPICS[self.topic], 2)
        topic, small, large = self.topic, self.rng.randrange(2, 12), self.rng.randrange(12, 99)
        capital = topic[0].upper() + topic[1:]
        return unused.pop().format(topic=topic, Topic=capital, a=a, A=a.capitalize(), b=b, n=small, m=large)


def write_text(rng: Random, topic: str, sentences: int) -> str:
    """Write about ``sentences`` sentences on a topic: paragraphs with occasional lists, tables and code."""
    text = _Sentences(rng, topic)
    if sentences <= 1:
        return text.draw("body")
    blocks, left = [text.draw("openings")], sentences - 2
    while left > 0:
        size = min(left, rng.randrange(2, 6))
        kind = rng.random()
        if kind < 0.6:
            blocks.append(" ".join(text.draw("body") for _ in range(size)))
        elif kind < 0.75:
            blocks.append("\n".join(f"{n}. {text.draw('points')}" for n in range(1, size + 1)))
        elif kind < 0.87:
            blocks.append("\n".join(text.draw("table_rows") for _ in range(2 * size)))
        else:
            code = "\n".join(text.draw("code_lines") for _ in range(2 * size))
            blocks.append(f"```python\n{code}\n```")
        left -= size
    blocks.append(text.draw("endings"))
    return "\n\n".join(blocks)


def essay(rng: Random) -> Question:
    """Draw a question that needs several paragraphs, sometimes about a text that it contains."""
    topic = rng.choice(list(words.TOPICS))
    a, b = rng.sample(words.TOPICS[topic], 2)
    slots = {
        "topic": topic, "a": a, "b": b, "name": rng.choice(words.NAMES), "other": rng.choice(words.NAMES),
        "country": rng.choice(list(words.CAPITALS)), "place": rng.choice(list(words.CAPITALS.values())),
        "things": rng.choice(words.THINGS), "subject": rng.choice(words.SUBJECTS),
        "when": rng.choice(words.PLACES), "n": rng.randrange(2, 12), "m": rng.randrange(12, 60),
    }  # fmt: skip
    template = rng.choice(words.ESSAYS["questions"])
    if rng.random() < 0.7:
        template = f"{rng.choice(words.ESSAYS['situations'])} {template}"
    if rng.random() < 0.5:
        template = f"{template} {rng.choice(words.ESSAYS['wishes'])}"
    prompt = template.format(**slots)
    if rng.random() < TEXT_GIVEN:
        text = write_text(rng, topic, max(3, round(rng.lognormvariate(2.6, 0.9))))
        prompt += f" Here is what I have:\n\n{text}"
    return Question(prompt, "", "", topic=topic)


SHORT: dict[Maker, int] = {
    questions.arithmetic: 16,
    questions.conversion: 12,
    questions.fact: 18,
    questions.one_word: 10,
    questions.listing: 12,
    questions.sorting: 6,
    questions.rewriting: 7,
    questions.foreign_sum: 5,
    questions.translation: 5,
    questions.code: 4,
}
"""Kinds of questions in short conversations and their weights."""
LONG: dict[Maker, int] = {**SHORT, essay: 250}
"""Kinds of questions in full-length conversations and their weights."""


def opening(rng: Random, makers: dict[Maker, int]) -> Question:
    """Draw the first turn of a conversation, sometimes with a greeting and a closing phrase."""
    question = _draw(rng, makers)
    before = f"{rng.choice(words.GREETINGS)} " if rng.random() < 0.15 else ""
    after = f" {rng.choice(words.CLOSINGS)}" if rng.random() < 0.1 else ""
    return dataclasses.replace(question, prompt=before + question.prompt + after)


def following(rng: Random, before: Question, makers: dict[Maker, int]) -> Question:
    """Draw a later turn: mostly one that refers to the answer before it, else a new question."""
    if before.right.isdecimal() and rng.random() < 0.8:
        value, step = int(before.right), rng.randrange(2, 50)
        prompt, result = rng.choice(
            (
                ("Now add {}.", value + step),
                ("And {} more than that?", value + step),
                ("And double that?", value * 2),
            )
        )
        return Question(prompt.format(step), str(result), str(questions.near_miss(rng, result)))
    if before.topic is not None and rng.random() < 0.7:
        aspect = rng.choice(words.TOPICS[before.topic])
        prompts = ("Say more about {}.", "And what about {}?", "Can you go deeper on {}?", "Why {}?")
        return Question(rng.choice(prompts).format(aspect), "", "", topic=before.topic)
    question = _draw(rng, makers)
    lead = rng.choice(("Next: ", "Another one: ", "", "And now: "))
    return dataclasses.replace(question, prompt=lead + question.prompt)


def _draw(rng: Random, makers: dict[Maker, int]) -> Question:
    return rng.choices(list(makers), list(makers.values()))[0](rng)
