"""Log loss on subsets of the rows: where a model predicts well and where it fails."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.bootstrap import Interval, bootstrap_interval, cluster_numbers
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.evaluate.predictions import Predictions

MIN_ROWS = 10
"""Slices with fewer rows are left out: their loss is too uncertain."""

MAX_MODEL_PAIRS = 12
"""Number of model pairs that get a slice of their own."""

REPLICATES = 500
"""Bootstrap replicates for the interval of each slice."""

TURNS = ("1 turn", "2 turns", "3 turns", "4 or more turns")
LONGER = ("A is longer", "within 25% of each other", "B is longer")
ANSWERS = ("different answers", "identical answers")
OUTCOMES = ("A preferred", "B preferred", "tie")
TRUNCATED = ("nothing cut", "less than half cut", "half or more cut")
OTHER_PAIRS = "all other pairs"

Division = tuple[NDArray[np.int64], Sequence[str]]
"""Slice number [rows] of each row, and the names of the slices in the order of the report."""

_LANGUAGE_SAMPLE = 600
"""Number of characters from which the language is guessed."""

_WORD = re.compile(r"[^\W\d_]+")
_COMMON_WORDS = {
    "English": "the of and to is in that what how you for with this are it on my an do can be or if write "
    "make which why who when where your from at as have me we should does would give please tell was not all",
    "German": "der die das und ist nicht ein eine ich du wie auf für von zu den im mir kann bitte sind",
    "French": "le les des et est une un que je vous pour dans qui en du pas sur il comment quel mon",
    "Spanish": "el los las que es en una por con para cómo qué del se mi un su cuál puedes como",
    "Portuguese": "os que é em uma por com para como um não do da se na no você meu qual são",
    "Italian": "il che è di una un per con come non del della sono gli nel più mi cosa puoi",
    "Dutch": "de het een en van dat niet ik je wat hoe met voor op zijn te ook kan",
    "Polish": "na się nie to jest do że jak co czy po dla jako są mi jaki proszę",
    "Turkish": "bir ve bu için ne mi ile nasıl da de var çok olarak ben olan bana",
    "Vietnamese": "là của và có cho một các không người được trong với này những tôi hãy",
}
_WORDS_BY_LANGUAGE = {language: frozenset(words.split()) for language, words in _COMMON_WORDS.items()}
_SCRIPTS = {
    "CYRILLIC": "Cyrillic script", "ARABIC": "Arabic script", "DEVANAGARI": "Devanagari script",
    "HEBREW": "Hebrew", "GREEK": "Greek", "BENGALI": "Bengali", "TAMIL": "Tamil", "THAI": "Thai",
    "HANGUL": "Korean", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Chinese",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slice:
    """Metrics of one subset of the rows."""

    name: str
    n: int
    log_loss: float
    log_loss_ci: Interval | None
    accuracy: float


def guess_language(text: str) -> str:
    """Guess the language from the script and, for Latin script, from common words.

    Accurate enough to show that a model fails outside English; a single short prompt may be misjudged.
    Text without letters is "no words"; Latin text without a known word is "other Latin script".

    >>> [guess_language(text) for text in ("How do I make tea?", "Как заварить чай?", "お茶の入れ方")]
    ['English', 'Cyrillic script', 'Japanese']
    """
    sample = text[:_LANGUAGE_SAMPLE]
    scripts: Counter[str] = Counter()
    for letter, count in Counter(filter(str.isalpha, sample)).items():
        scripts[_script(letter)] += count
    if not scripts:
        return "no words"
    if scripts["Japanese"] > 0.1 * scripts.total():
        return "Japanese"  # kana are conclusive: most other characters may be Chinese
    script = scripts.most_common(1)[0][0]
    if script != "Latin":
        return script
    words = _WORD.findall(sample.lower())
    votes = Counter(name for word in words for name, known in _WORDS_BY_LANGUAGE.items() if word in known)
    return votes.most_common(1)[0][0] if votes else "other Latin script"


@lru_cache(maxsize=2**16)
def _script(letter: str) -> str:
    return _SCRIPTS.get(re.split("[ -]", unicodedata.name(letter, ""))[0], "Latin")


def losses_by_slice(
    predictions: Predictions, rows: Sequence[Comparison], *, seed: int = 0
) -> dict[str, list[Slice]]:
    """Compute the log loss, its interval and the accuracy on slices of the labelled rows.

    ``rows`` are in the order of ``predictions``, whose column ``share_cut`` is used if present.

    Returns:
        For each property that rows are divided by, in the order of the report, its slices. Properties with
        a single slice are left out.
    """
    known = predictions.take(predictions.labelled)
    if not len(known):
        return {}
    labelled_rows = [row for row, labelled in zip(rows, predictions.labelled, strict=True) if labelled]
    losses = log_losses(known.probabilities.astype(np.float64), known.labels)
    correct = known.probabilities.argmax(axis=1) == known.labels
    cluster = cluster_numbers(known.groups, len(known))

    def measure(name: str, inside: NDArray[np.bool_]) -> Slice:
        return Slice(
            name=name,
            n=int(inside.sum()),
            log_loss=float(losses[inside].mean()),
            log_loss_ci=bootstrap_interval(losses[inside], cluster[inside], seed=seed, replicates=REPLICATES),
            accuracy=float(correct[inside].mean()),
        )

    tables = {}
    for title, (numbers, names) in _divide(known, labelled_rows).items():
        masks = {name: numbers == number for number, name in enumerate(names)}
        large = {name: inside for name, inside in masks.items() if inside.sum() >= MIN_ROWS}
        if len(large) > 1:
            tables[title] = [measure(name, inside) for name, inside in large.items()]
    return tables


def _divide(known: Predictions, rows: Sequence[Comparison]) -> dict[str, Division]:
    """Every division of the rows, by its title in the report."""
    a, b = np.array([[sum(map(len, r.responses_a)), sum(map(len, r.responses_b))] for r in rows]).T
    length = a + b + [sum(map(len, row.prompts)) for row in rows]
    low, middle, high = (int(quartile) for quartile in np.quantile(length, [0.25, 0.5, 0.75]))
    between = (f"{low + 1:,} to {middle:,}", f"{middle + 1:,} to {high:,}")
    lengths = (f"up to {low:,} characters", *between, f"over {high:,}")
    folds, fold = np.unique(known.folds, return_inverse=True)
    share_cut = np.array([share or 0.0 for share in known.extra.get("share_cut") or [0.0] * len(rows)])
    return {
        "Turns": (np.clip([len(row.prompts) for row in rows], 1, len(TURNS)) - 1, TURNS),
        "Length": (np.searchsorted([low, middle, high], length), lengths),
        "Share truncated": (np.digitize(share_cut, [np.finfo(float).tiny, 0.5]), TRUNCATED),
        "Language of the prompt": _number_by_size(languages(rows)),
        "Answers": _number_by_size([ANSWERS[row.responses_a == row.responses_b] for row in rows]),
        "Longer answer": (1 - (a > 1.25 * b).astype(int) + (b > 1.25 * a), LONGER),
        "Outcome": (known.labels, OUTCOMES),
        "Fold": (fold, [f"fold {number}" for number in folds]),
        "Model pair": _divide_by_model_pair(rows),
    }


def _number_by_size(values: Sequence[str]) -> Division:
    """One slice for each value, in descending order of size."""
    counts = Counter(values)
    names = sorted(counts, key=lambda value: (-counts[value], value))
    return np.array([names.index(value) for value in values]), names


def languages(rows: Sequence[Comparison]) -> list[str]:
    """The source's own ``language`` column where every row has one, else a guess from the prompts."""
    stated = [row.extra.get("language") for row in rows]
    if all(stated):
        return [str(name) for name in stated]
    return [guess_language(" ".join(row.prompts)) for row in rows]


def _divide_by_model_pair(rows: Sequence[Comparison]) -> Division:
    """The most frequent pairs, without regard to order; all other pairs together."""
    pairs = [tuple(sorted((row.model_a, row.model_b))) if row.model_a and row.model_b else () for row in rows]
    frequent = [pair for pair, _ in Counter(pairs).most_common() if pair][:MAX_MODEL_PAIRS]
    numbers = [frequent.index(pair) if pair in frequent else len(frequent) for pair in pairs]
    return np.array(numbers), [*(" / ".join(pair) for pair in frequent), OTHER_PAIRS]
