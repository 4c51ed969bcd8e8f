"""Short questions of the simulated arena, each with a right answer and a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lmsys_unsloth.data.arena import vocabulary as words
from lmsys_unsloth.data.arena.vocabulary import ENGLISH, Language


@dataclass(frozen=True, slots=True)
class Question:
    """One user turn and its possible answers.

    >>> Question("What is 2 + 3?", "5", "6", ("2 + 3 is {}.",)).right
    '5'
    """

    prompt: str
    right: str
    """The bare answer."""
    wrong: str
    sentences: tuple[str, ...] = ENGLISH.answers
    """Sentences around the bare answer ``{}``."""
    other_form: str | None = None
    """The right answer in another form than the requested one; None when no form is requested."""
    language: Language = ENGLISH
    topic: str | None = None
    """Topic of an essay; None for a short question."""


Maker = Callable[[Random], Question]
"""Function that draws a question of one kind."""


def near_miss(rng: Random, value: int) -> int:
    """Draw a plausible wrong result of a calculation."""
    return value + rng.choice((-10, -2, -1, 1, 2, 10, 11))


def arithmetic(rng: Random) -> Question:
    """Ask for a sum, a difference or a product, or for a sum in a word problem."""
    kind = rng.randrange(4)
    a, b = rng.randrange(11, 90), rng.randrange(11, 90)
    if kind == 0:
        prompt, value, sign = rng.choice(("What is {} + {}?", "Add {} and {}.", "{} plus {}?")), a + b, "plus"
    elif kind == 1:
        a, b = max(a, b) + 5, min(a, b)
        prompt, value, sign = rng.choice(("What is {} - {}?", "Compute {} minus {}.")), a - b, "minus"
    elif kind == 2:
        a, b = rng.randrange(3, 13), rng.randrange(3, 30)
        prompt, value, sign = rng.choice(("What is {} times {}?", "Multiply {} by {}.")), a * b, "times"
    else:
        return _story(rng, a, b)
    sentences = (f"{a} {sign} {b} is {{}}.", f"{a} {sign} {b} equals {{}}.", *ENGLISH.answers[:2])
    return Question(prompt.format(a, b), str(value), str(near_miss(rng, value)), sentences)


def _story(rng: Random, a: int, b: int) -> Question:
    name, things = rng.choice(words.NAMES), rng.choice(words.THINGS)
    gains = rng.random() < 0.5
    a, b = (a, b) if gains else (a + b, b)
    event = rng.choice(("buys", "finds", "gets") if gains else ("loses", "sells", "gives away"))
    value = a + b if gains else a - b
    prompt = f"{name} has {a} {things} and {event} {b}. How many are there now?"
    sentences = (f"{name} now has {{}} {things}.", f"There are {{}} {things}.", ENGLISH.answers[0])
    return Question(prompt, str(value), str(near_miss(rng, value)), sentences)


UNITS = (
    ("kilometres", "metres", 1000), ("hours", "minutes", 60), ("minutes", "seconds", 60),
    ("kilograms", "grams", 1000), ("days", "hours", 24), ("weeks", "days", 7), ("feet", "inches", 12),
    ("litres", "millilitres", 1000), ("years", "months", 12), ("metres", "centimetres", 100),
    ("dozens", "pieces", 12), ("tonnes", "kilograms", 1000), ("centuries", "years", 100),
)  # fmt: skip


def conversion(rng: Random) -> Question:
    """Ask to convert a quantity to another unit."""
    big, small, factor = rng.choice(UNITS)
    count = rng.randrange(2, 60)
    prompt = rng.choice(("Convert {} {} to {}.", "How much is {} {} in {}?", "{} {} in {}?"))
    wrong = rng.choice((count * factor * 10, count * factor // 10, count + factor, count * (factor + 2)))
    if wrong == count * factor:
        wrong += 1
    sentences = (f"{count} {big} are {{}} {small}.", f"That is {{}} {small}.", f"{{}} {small}.")
    return Question(prompt.format(count, big, small), str(count * factor), str(wrong), sentences)


def fact(rng: Random) -> Question:
    """Ask for a capital, a chemical symbol, an opposite or a plural."""
    table = rng.choice(words.FACTS)
    key = rng.choice(list(table.answers))
    right = table.answers[key]
    wrong = rng.choice(
        [table.answers[name] for name in rng.sample(list(table.answers), 3) if table.answers[name] != right]
    )
    stated = table.sentence.format(key, "{}")
    return Question(rng.choice(table.prompts).format(key), right, wrong, (stated, stated, ENGLISH.answers[1]))


def one_word(rng: Random) -> Question:
    """Ask for the bare answer to a fact or a calculation; a sentence is the wrong form."""
    question = fact(rng) if rng.random() < 0.6 else arithmetic(rng)
    wish = rng.choice((" Answer only, no sentence.", " Reply with the answer alone.", " Just the answer."))
    sentence = f"{rng.choice(ENGLISH.openings)} {question.sentences[0].format(question.right)}"
    return Question(question.prompt + wish, question.right, question.wrong, ("{}",), sentence)


FORMS: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("separated by commas", ", ".join),
    ("one per line with dashes", lambda items: "\n".join(f"- {item}" for item in items)),
    ("as a numbered list", lambda items: "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))),
    ("in capital letters", lambda items: " ".join(items).upper()),
    ("in brackets", lambda items: f"[{', '.join(items)}]"),
    ("joined by plus signs", " + ".join),
)


def listing(rng: Random) -> Question:
    """Ask for a few members of a category in a given form."""
    category = rng.choice(list(words.CATEGORIES))
    items = words.CATEGORIES[category]
    others = words.CATEGORIES[rng.choice([name for name in words.CATEGORIES if name != category])]
    count = rng.randrange(2, 5)
    chosen, wrong = rng.sample(items, count), rng.sample(others, count)
    (form, write), (_, write_otherwise) = rng.sample(FORMS, 2)
    prompt = rng.choice(("Name {} {} {}.", "List {} {}, {}.", "Give me {} {}, {}."))
    prompt = prompt.format(("two", "three", "four")[count - 2], category, form)
    return Question(prompt, write(chosen), write(wrong), ("{}",), write_otherwise(chosen))


def sorting(rng: Random) -> Question:
    """Ask to put four words in alphabetical order."""
    categories = rng.sample(list(words.CATEGORIES), 2)
    items = rng.sample([item for category in categories for item in words.CATEGORIES[category]], 4)
    items = [item.lower() for item in items]
    right = sorted(items)
    wrong = right[:]
    while wrong == right:
        rng.shuffle(wrong)
    prompt = rng.choice(("Sort alphabetically: {}.", "Put these in alphabetical order: {}."))
    sentences = ("{}.", "Sorted: {}.", "In order: {}.")
    return Question(prompt.format(", ".join(items)), ", ".join(right), ", ".join(wrong), sentences)


def rewriting(rng: Random) -> Question:
    """Ask to put a sentence into another tense or to negate it."""
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
    return Question(prompt, right, wrong, ("{}.", "{}.", '"{}."'))


def foreign_sum(rng: Random) -> Question:
    """Ask for a sum in another language, to be answered in that language."""
    language = words.FOREIGN[rng.randrange(4)]
    a, b = rng.randrange(11, 90), rng.randrange(11, 90)
    prompt = rng.choice(language.sums).format(a, b)
    return Question(prompt, str(a + b), str(near_miss(rng, a + b)), language.answers, language=language)


def translation(rng: Random) -> Question:
    """Ask to translate an English word."""
    word, place = rng.choice(list(words.TRANSLATIONS)), rng.randrange(4)
    translated = {english: forms[place] for english, forms in words.TRANSLATIONS.items()}
    name, right = words.FOREIGN[place].name, translated.pop(word)
    prompt = rng.choice(("How do you say '{}' in {}?", "Translate '{}' into {}.", "'{}' in {}?"))
    sentences = (f"'{word}' is '{{}}' in {name}.", f"In {name} it is '{{}}'.")
    return Question(prompt.format(word, name), right, rng.choice(list(translated.values())), sentences)


def code(rng: Random) -> Question:
    """Ask for one line of Python."""
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
    return Question(f"Write one line of Python that {goal}.", right, wrong, (fence, fence, "Use `{}`."))
