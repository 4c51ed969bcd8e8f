"""Long answers of the simulated arena, put together from sentences about a topic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

from lmsys_unsloth.data.arena import languages
from lmsys_unsloth.data.arena import vocabulary as words

if TYPE_CHECKING:
    from lmsys_unsloth.data.arena.bots import Behaviour

OPENINGS = (
    "{Topic} will make more sense when you look at {a} first.",
    "Most people meet {topic} through {a}, and only later notice {b}.",
    "There are many opinions about {topic}; here is a careful summary.",
    "If you are new to {topic}, begin with {a} and leave {b} for later.",
    "In {topic} much depends on {a}, but the details deserve a closer look.",
)
BODY = (
    "The role of {a} in {topic} is often underestimated, although {b} could hardly do without.",
    "A practical way to begin is to write down what you know about {a} and what you only assume.",
    "Experts disagree about {a}, yet nearly all of them agree that {b} should get more attention.",
    "When {a} and {b} pull in different directions, it is wise to change only one thing at a time.",
    "In practice, work on {a} takes about {n} times as long as beginners expect.",
    "A common mistake is to treat {a} like {b}; a second one is to forget about both.",
    "You can measure progress by looking at {a} every week and comparing with the week before.",
    "Historically, {topic} changed a great deal once {a} could be had cheaply.",
    "For example, a small group that paid attention to {a} needed {n} fewer attempts than the others.",
    "It also helps to talk with someone who has dealt with {b} for {n} years or more.",
    "Be careful with {a}: small errors there tend to show up much later, usually in {b}.",
    "If you have little time, spend it on {a}; the rest of {topic} can wait.",
    "Some books describe {b} at length but hardly mention {a}, which gives the wrong impression.",
    "The costs are modest: expect {n} hours a month for {a}, and even less for {b}.",
    "None of this works without patience, because {a} will not change overnight.",
    "In larger settings, care for {b} is shared between several people who meet every {n} days.",
    "Weather, money and mood all have an influence on {a}, but none of them decides alone.",
    "Compare two cases: in the first, {a} came before {b}; in the second, it was the other way round.",
    "As a rule of thumb, stop when {a} can't be improved after {n} tries.",
    "Safety matters too, so check {a} before you turn to {b}.",
    "The relation between {a} and {b} has been studied for decades, with mixed results.",
    "Ask yourself which part of {topic} you enjoy, and let {a} grow from there.",
    "Whoever sells {b} will tell you that {a} can be ignored; do not believe it.",
    "A notebook in which you record {a} will be worth more than {n} new tools.",
)
POINTS = (
    "**{A}**: decide early what you want, then keep notes.",
    "**{A}**: check {n} times before you go on.",
    "**{A}**: ask what it has to do with {b}.",
    "**{A}**: start small and repeat often.",
    "**{A}**: compare at least {n} options.",
)
TABLE_ROWS = (
    "| {a} | {n} | {m}.{n} | {m}% |",
    "| {b} | {m} | {n}.0{m} | {n}{m} |",
    "| {a}/{b} | {m}{n} | -{n}.{m} | n/a |",
)
CODE_LINES = (
    "{a}[{n}] += {m} * {b}_{n}",
    "if len({a}) > {m}: {b}.append(({n}, {m}))",
    "for i, x in enumerate({a}[{n}:]): print(f'{{i}}: {{x}}')",
    "{b}_{m} = max(x ** {n} for x in {a})",
    "return {{'{a}': {b}[:{n}], 'n': {m}}}",
)
ENDINGS = (
    "In short, look after {a} and {topic} will mostly look after itself.",
    "To sum up, {topic} rewards those who are patient with {a}.",
    "That is the whole idea: {a} first, {b} second, and everything else when there is time.",
)


def write_essay(rng: Random, topic: str, behaviour: Behaviour) -> str:
    """An essay about the topic; or, by behaviour, off the topic, in another language, broken off."""
    if behaviour.failure == "wrong language":
        return _foreign(rng, topic, behaviour.sentences)
    if not behaviour.right:
        topic = rng.choice([other for other in words.TOPICS if other != topic])
    text = paragraphs(rng, topic, behaviour.sentences)
    if behaviour.failure == "breaks off":
        cut = text[: max(20, int(len(text) * rng.uniform(0.3, 0.9)))]
        return cut.rstrip(" .,:;*\n0123456789")
    if behaviour.style == "wordy":
        english = languages.ENGLISH
        return f"{rng.choice(english.openings)} {text}\n\n{rng.choice(english.closings)}"
    return text


def paragraphs(rng: Random, topic: str, sentences: int) -> str:
    """About as many sentences on a topic: paragraphs and, now and then, a list, a table or code."""
    said = _Speaker(rng, topic)
    if sentences <= 1:
        return said.next_of(BODY)
    blocks, left = [said.next_of(OPENINGS)], sentences - 2
    while left > 0:
        size = min(left, rng.randrange(2, 6))
        kind = rng.random()
        if kind < 0.6:
            blocks.append(" ".join(said.next_of(BODY) for _ in range(size)))
        elif kind < 0.75:
            blocks.append("\n".join(f"{n}. {said.next_of(POINTS)}" for n in range(1, size + 1)))
        elif kind < 0.87:
            blocks.append("\n".join(said.next_of(TABLE_ROWS) for _ in range(2 * size)))
        else:
            code = "\n".join(said.next_of(CODE_LINES) for _ in range(2 * size))
            blocks.append(f"```python\n{code}\n```")
        left -= size
    blocks.append(said.next_of(ENDINGS))
    return "\n\n".join(blocks)


class _Speaker:
    """Says sentences on one topic; a template comes again only after all others."""

    def __init__(self, rng: Random, topic: str) -> None:
        self.rng = rng
        self.topic = topic
        self.aspects = words.TOPICS[topic].split()
        self.rounds: dict[int, Iterator[str]] = {}

    def next_of(self, templates: Sequence[str]) -> str:
        rounds = self.rounds.setdefault(id(templates), iter(()))
        template = next(rounds, None)
        if template is None:
            self.rounds[id(templates)] = rounds = iter(self.rng.sample(templates, len(templates)))
            template = next(rounds)
        a, b = self.rng.sample(self.aspects, 2)
        topic = self.topic
        capital = topic[0].upper() + topic[1:]
        small, large = self.rng.randrange(2, 12), self.rng.randrange(12, 99)
        return template.format(topic=topic, Topic=capital, a=a, A=a.capitalize(), b=b, n=small, m=large)


def _foreign(rng: Random, topic: str, sentences: int) -> str:
    language = rng.choices(languages.FOREIGN, languages.FOREIGN_WEIGHTS)[0]
    aspects = rng.sample(words.TOPICS[topic].split(), min(max(sentences // 3, 1), 5))
    parts = [rng.choice(language.openings)]
    parts += [rng.choice(language.answers).format(aspect) for aspect in aspects]
    parts.append(rng.choice(language.closings))
    return " ".join(parts)
