"""Questions that want several paragraphs; for long rows."""

from __future__ import annotations

from random import Random

from lmsys_unsloth.data.arena import vocabulary as words
from lmsys_unsloth.data.arena.essays import paragraphs
from lmsys_unsloth.data.arena.tasks import Task

QUESTIONS = (
    "Explain {topic} to a beginner.",
    "Write an essay about {topic}.",
    "Give me advice on {topic}.",
    "How does {topic} work?",
    "What should I know about {topic}, above all about {a}?",
    "Write a blog post on {topic} and mention {a}.",
    "Compare two ways to think about {topic}.",
    "I need a detailed plan for {topic}; begin with {a}.",
    "Why does {a} matter in {topic}?",
    "Tell me a story that has to do with {topic}.",
    "What are the {n} worst mistakes in {topic}?",
    "Draft a speech on {topic} for {n} minutes.",
    "Which question about {a} do people ask most often?",
)
SITUATIONS = (
    "My friend {name} from {country} and I argue about {a}. ",
    "I run a shop for {things} in {place}. ",
    "{name} and {other} visit us {when} and will ask about {b}. ",
    "I have {m} {things} and no idea of {b}. ",
    "After {n} years in {place} I want to try something new. ",
    "{name} told me that {subject} knows all about {a}. ",
    "We are a class of {m} pupils from {country}. ",
)
"""Put before most questions."""
WISHES = (
    " Use about {m}0 words.",
    " Write for {subject}.",
    " Mention {place} at least {n} times.",
    " Leave out {b}.",
    " {name} will read it aloud {when}.",
    " Give {n} examples from {country}.",
    " Be friendly but firm.",
)
"""Put after half of them."""
TEXT_GIVEN = 0.12
"""Share of questions that come with a text."""


def essay(rng: Random) -> Task:
    """A question that wants several paragraphs, sometimes about a text that comes with it."""
    topic = rng.choice(list(words.TOPICS))
    a, b = rng.sample(words.TOPICS[topic].split(), 2)
    slots = {
        "topic": topic, "a": a, "b": b, "name": rng.choice(words.NAMES), "other": rng.choice(words.NAMES),
        "country": rng.choice(list(words.CAPITALS)), "place": rng.choice(list(words.CAPITALS.values())),
        "things": rng.choice(words.THINGS), "subject": rng.choice(words.SUBJECTS),
        "when": rng.choice(words.PLACES), "n": rng.randrange(2, 12), "m": rng.randrange(12, 60),
    }  # fmt: skip
    template = rng.choice(QUESTIONS)
    if rng.random() < 0.7:
        template = rng.choice(SITUATIONS) + template
    if rng.random() < 0.5:
        template += rng.choice(WISHES)
    prompt = template.format(**slots)
    if rng.random() < TEXT_GIVEN:
        text = paragraphs(rng, topic, max(3, round(rng.lognormvariate(2.6, 0.9))))
        prompt += f" Here is what I have:\n\n{text}"
    return Task(prompt, "", "", topic=topic)
