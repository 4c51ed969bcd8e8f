"""Questions with their right answer, a wrong one, and the form that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lmsys_unsloth.data.arena import languages
from lmsys_unsloth.data.arena import vocabulary as words
from lmsys_unsloth.data.arena.languages import ENGLISH, Language


@dataclass(frozen=True, slots=True)
class Task:
    """One user turn and what there is to say about it.

    >>> Task("What is 2 + 3?", "5", "6", ("2 + 3 is {}.",)).right
    '5'
    """

    prompt: str
    right: str
    """The bare answer."""
    wrong: str
    sentences: tuple[str, ...] = ENGLISH.answers
    """Ways to say it, around ``{}``."""
    astray: str | None = None
    """The right answer in another form than the one asked for; None when no form was asked for."""
    language: Language = ENGLISH
    topic: str | None = None
    """Set for a question that wants an essay (long rows only)."""


Maker = Callable[[Random], Task]


def near_miss(rng: Random, value: int) -> int:
    """A wrong result of the kind that people and bots get."""
    return value + rng.choice((-10, -2, -1, 1, 2, 10, 11))


def arithmetic(rng: Random) -> Task:
    kind = rng.randrange(4)
    a, b = rng.randrange(11, 90), rng.randrange(11, 90)
    if kind == 0:
        prompt, value, said = rng.choice(("What is {} + {}?", "Add {} and {}.", "{} plus {}?")), a + b, "plus"
    elif kind == 1:
        a, b = max(a, b) + 5, min(a, b)
        prompt, value, said = rng.choice(("What is {} - {}?", "Compute {} minus {}.")), a - b, "minus"
    elif kind == 2:
        a, b = rng.randrange(3, 13), rng.randrange(3, 30)
        prompt, value, said = rng.choice(("What is {} times {}?", "Multiply {} by {}.")), a * b, "times"
    else:
        return _story_sum(rng, a, b)
    sentences = (f"{a} {said} {b} is {{}}.", f"{a} {said} {b} equals {{}}.", *ENGLISH.answers[:2])
    return Task(prompt.format(a, b), str(value), str(near_miss(rng, value)), sentences)


def _story_sum(rng: Random, a: int, b: int) -> Task:
    name, things = rng.choice(words.NAMES), rng.choice(words.THINGS)
    gains = rng.random() < 0.5
    a, b = (a, b) if gains else (a + b, b)
    event = rng.choice(("buys", "finds", "gets") if gains else ("loses", "sells", "gives away"))
    value = a + b if gains else a - b
    prompt = f"{name} has {a} {things} and {event} {b}. How many are there now?"
    sentences = (f"{name} now has {{}} {things}.", f"There are {{}} {things}.", ENGLISH.answers[0])
    return Task(prompt, str(value), str(near_miss(rng, value)), sentences)


UNITS = (
    ("kilometres", "metres", 1000), ("hours", "minutes", 60), ("minutes", "seconds", 60),
    ("kilograms", "grams", 1000), ("days", "hours", 24), ("weeks", "days", 7), ("feet", "inches", 12),
    ("litres", "millilitres", 1000), ("years", "months", 12), ("metres", "centimetres", 100),
    ("dozens", "pieces", 12), ("tonnes", "kilograms", 1000), ("centuries", "years", 100),
)  # fmt: skip


def conversion(rng: Random) -> Task:
    big, small, factor = rng.choice(UNITS)
    count = rng.randrange(2, 60)
    prompt = rng.choice(("Convert {} {} to {}.", "How much is {} {} in {}?", "{} {} in {}?")).format(
        count, big, small
    )
    wrong = rng.choice((count * factor * 10, count * factor // 10, count + factor, count * (factor + 2)))
    if wrong == count * factor:
        wrong += 1
    sentences = (f"{count} {big} are {{}} {small}.", f"That is {{}} {small}.", f"{{}} {small}.")
    return Task(prompt, str(count * factor), str(wrong), sentences)


FACTS: tuple[tuple[dict[str, str], tuple[str, ...], str], ...] = (
    (
        words.CAPITALS,
        ("What is the capital of {}?", "Name the capital city of {}."),
        "The capital of {0} is {1}.",
    ),
    (
        words.SYMBOLS,
        ("What is the chemical symbol of {}?", "Which symbol stands for {}?"),
        "The symbol of {0} is {1}.",
    ),
    (
        words.OPPOSITES,
        ("What is the opposite of '{}'?", "Give an antonym of '{}'."),
        "The opposite of '{0}' is '{1}'.",
    ),
    (
        words.PLURALS,
        ("What is the plural of '{}'?", "How do you write more than one {}?"),
        "The plural of '{0}' is '{1}'.",
    ),
)


def fact(rng: Random) -> Task:
    table, questions, sentence = rng.choice(FACTS)
    keys = list(table)
    key = rng.choice(keys)
    other = rng.choice([name for name in rng.sample(keys, 3) if table[name] != table[key]])
    said = sentence.format(key, "{}")
    return Task(rng.choice(questions).format(key), table[key], table[other], (said, said, ENGLISH.answers[1]))


def one_word(rng: Random) -> Task:
    """A fact or a sum with the wish for a bare answer; a sentence goes astray."""
    task = fact(rng) if rng.random() < 0.6 else arithmetic(rng)
    wish = rng.choice((" Answer only, no sentence.", " Reply with the answer alone.", " Just the answer."))
    astray = f"{rng.choice(ENGLISH.openings)} {task.sentences[0].format(task.right)}"
    return Task(task.prompt + wish, task.right, task.wrong, ("{}",), astray)


FORMS: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("separated by commas", ", ".join),
    ("one per line with dashes", lambda items: "\n".join(f"- {item}" for item in items)),
    ("as a numbered list", lambda items: "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))),
    ("in capital letters", lambda items: " ".join(items).upper()),
    ("in brackets", lambda items: f"[{', '.join(items)}]"),
    ("joined by plus signs", " + ".join),
)


def listing(rng: Random) -> Task:
    category = rng.choice(list(words.CATEGORIES))
    items = words.CATEGORIES[category].split()
    foreign = words.CATEGORIES[rng.choice([name for name in words.CATEGORIES if name != category])].split()
    count = rng.randrange(2, 5)
    chosen, stray = rng.sample(items, count), rng.sample(foreign, count)
    (form, write), (_, write_otherwise) = rng.sample(FORMS, 2)
    number = ("two", "three", "four")[count - 2]
    prompt = rng.choice(("Name {} {} {}.", "List {} {}, {}.", "Give me {} {}, {}.")).format(
        number, category, form
    )
    return Task(prompt, write(chosen), write(stray), ("{}",), write_otherwise(chosen))


def sorting(rng: Random) -> Task:
    items = rng.sample(
        [item for group in rng.sample(list(words.CATEGORIES), 2) for item in words.CATEGORIES[group].split()],
        4,
    )
    items = [item.lower() for item in items]
    right = sorted(items)
    wrong = right[:]
    while wrong == right:
        rng.shuffle(wrong)
    prompt = rng.choice(("Sort alphabetically: {}.", "Put these in alphabetical order: {}.")).format(
        ", ".join(items)
    )
    return Task(prompt, ", ".join(right), ", ".join(wrong), ("{}.", "Sorted: {}.", "In order: {}."))


def rewriting(rng: Random) -> Task:
    subject, present = rng.choice(words.SUBJECTS), rng.choice(list(words.VERBS))
    rest = f"{rng.choice(words.OBJECTS)} {rng.choice(words.PLACES)}"
    plain, past = f"{subject} {present} {rest}", f"{subject} {words.VERBS[present]} {rest}"
    stem = present[:-2] if present in ("washes", "catches") else present[:-1]
    stem = "carry" if present == "carries" else stem
    capital = plain[0].upper() + plain[1:]
    prompt, right, wrong = rng.choice(
        (
            (f"Put into the past tense: {capital}.", past, f"{subject} will {stem} {rest}"),
            (f"Rewrite in the future tense: {capital}.", f"{subject} will {stem} {rest}", past),
            (f"Make it negative: {capital}.", f"{subject} does not {stem} {rest}", plain),
        )
    )
    right, wrong = (text[0].upper() + text[1:] for text in (right, wrong))
    return Task(prompt, right, wrong, ("{}.", "{}.", '"{}."'))


def foreign_sum(rng: Random) -> Task:
    language = languages.FOREIGN[rng.randrange(4)]
    a, b = rng.randrange(11, 90), rng.randrange(11, 90)
    prompt = rng.choice(languages.SUMS[language.name]).format(a, b)
    return Task(prompt, str(a + b), str(near_miss(rng, a + b)), language.answers, language=language)


def translation(rng: Random) -> Task:
    word, place = rng.choice(list(languages.WORDS)), rng.randrange(4)
    name = languages.FOREIGN[place].name
    right = languages.WORDS[word][place]
    others = [forms[place] for other, forms in languages.WORDS.items() if other != word]
    prompt = rng.choice(("How do you say '{}' in {}?", "Translate '{}' into {}.", "'{}' in {}?")).format(
        word, name
    )
    return Task(
        prompt, right, rng.choice(others), (f"'{word}' is '{{}}' in {name}.", f"In {name} it is '{{}}'.")
    )


def code(rng: Random) -> Task:
    a, name = rng.randrange(2, 40), rng.choice(("x", "n", "total", "price", "score", "width"))
    goal, right, wrong = rng.choice(
        (
            (f"multiplies {name} by {a}", f"{name} *= {a}", f"{name} += {a}"),
            (f"adds {a} to {name}", f"{name} += {a}", f"{name} = {a}"),
            (f"prints {name} minus {a}", f"print({name} - {a})", f"print({a} - {name})"),
            (f"squares {name} and adds {a}", f"{name} = {name} ** 2 + {a}", f"{name} = {name} * 2 + {a}"),
        )
    )
    fence = "```python\n{}\n```"
    return Task(f"Write one line of Python that {goal}.", right, wrong, (fence, fence, "Use `{}`."))
