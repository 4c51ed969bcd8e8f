"""Where a model is good and where it fails: the loss on parts of the rows."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.bootstrap import bootstrap_interval, cluster_numbers
from lmsys_unsloth.evaluate.calibration import Floats, Ints, log_losses
from lmsys_unsloth.evaluate.predictions import Predictions

SMALLEST = 10
"""Parts with fewer rows are not shown: their loss says nothing."""

MOST_MODEL_PAIRS = 12
REPLICATES = 500
TURNS = ("1 turn", "2 turns", "3 turns", "4 or more turns")
LONGER = ("A is longer", "within 25% of each other", "B is longer")
OUTCOMES = ("A preferred", "B preferred", "tie")
TRUNCATED = ("nothing cut", "less than half cut", "half or more cut")
OTHER_PAIRS = "all other pairs"

Division = tuple[list[str], Sequence[str]]
"""The part each row is in, and the parts in the order in which they are shown."""

_SAMPLE = 600
"""Characters of a conversation that are looked at to tell its language."""

_WORD = re.compile(r"[^\W\d_]+")
_SCRIPT_WORD = re.compile(r"[ -]")
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
_VOTES: dict[str, list[str]] = {}
for _name, _words in _COMMON_WORDS.items():
    for _word in _words.split():
        _VOTES.setdefault(_word, []).append(_name)
_SCRIPTS = {
    "CYRILLIC": "Cyrillic script",
    "ARABIC": "Arabic script",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Devanagari script",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "THAI": "Thai",
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
}


def language(text: str) -> str:
    """A rough guess from the script, and for Latin script from common words; no model, no download.

    Good enough to see that a model fails outside English; single short prompts may be misjudged.
    Text without letters is "no words"; Latin text without known words is "other Latin script".

    >>> language("How do I make tea?"), language("Как заварить чай?"), language("お茶の入れ方")
    ('English', 'Cyrillic script', 'Japanese')
    """
    start = text[:_SAMPLE]
    letters = [c for c in start if c.isalpha()]
    if not letters:
        return "no words"
    if not start.isascii():
        scripts = Counter(map(_script, letters))
        if scripts["Japanese"] > 0.1 * len(letters):
            return "Japanese"  # kana decide: the rest may be written in Chinese characters
        script = scripts.most_common(1)[0][0]
        if script != "Latin":
            return script
    votes = Counter(name for word in _WORD.findall(start.lower()) for name in _VOTES.get(word, ()))
    return votes.most_common(1)[0][0] if votes else "other Latin script"


@lru_cache(maxsize=2**16)
def _script(letter: str) -> str:
    return _SCRIPTS.get(_SCRIPT_WORD.split(unicodedata.name(letter, ""))[0], "Latin")


def losses_by_slice(
    predictions: Predictions, rows: Sequence[Comparison], *, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Loss with its interval for parts of the labelled rows.

    Args:
        predictions: what was predicted; ``share_cut`` is used when present.
        rows: the same rows, in the same order.

    Returns:
        for each way to divide (in reading order) its parts: ``{"name", "n", "share", "log_loss",
        "ci", "accuracy"}``. Ways that give one part only are left out.
    """
    mask = predictions.labelled
    known = predictions.take(mask)
    if not len(known):
        return {}
    inside = [row for row, chosen in zip(rows, mask, strict=True) if chosen]
    losses = log_losses(known.probabilities.astype(np.float64), known.labels)
    hits = (known.probabilities.argmax(axis=1) == known.labels).astype(np.float64)
    cluster = cluster_numbers(known.groups, len(known))
    tables = {}
    for title, (names, order) in _divisions(known, inside).items():
        parts = [_part(name, np.asarray(names) == name, losses, hits, cluster, seed) for name in order]
        shown = [part for part in parts if part["n"] >= SMALLEST]
        if len(shown) > 1:
            tables[title] = shown
    return tables


def _divisions(known: Predictions, rows: Sequence[Comparison]) -> dict[str, Division]:
    identical = [row.responses_a == row.responses_b for row in rows]
    ways: dict[str, Division | None] = {
        "Turns": _ordered([_turns(len(row.prompts)) for row in rows], TURNS),
        "Length": _lengths(rows),
        "Share truncated": _truncated(known),
        "Language of the prompt": _by_size(_languages(rows)),
        "Answers": _by_size(["identical answers" if same else "different answers" for same in identical]),
        "Longer answer": _ordered([_longer(row) for row in rows], LONGER),
        "Outcome": _ordered([OUTCOMES[label] for label in known.labels], OUTCOMES),
        "Fold": _by_size([f"fold {fold}" for fold in known.folds], key=lambda name: int(name[5:])),
        "Model pair": _model_pairs(rows),
    }
    return {title: division for title, division in ways.items() if division is not None}


def _ordered(names: list[str], order: Sequence[str]) -> Division:
    return names, order


def _by_size(names: list[str], key: Callable[[str], Any] | None = None) -> Division:
    """Parts from the largest to the smallest, or by ``key``."""
    counts = Counter(names)
    return names, sorted(counts, key=key or (lambda name: (-counts[name], name)))


def _languages(rows: Sequence[Comparison]) -> list[str]:
    """The source's own ``language`` column where every row has one, else a guess from the prompt."""
    stated = [row.extra.get("language") for row in rows]
    if all(stated):
        return [str(name) for name in stated]
    return [language(" ".join(row.prompts)) for row in rows]


def _turns(count: int) -> str:
    return TURNS[min(max(count, 1), len(TURNS)) - 1]


def _longer(row: Comparison) -> str:
    a, b = (sum(map(len, texts)) for texts in (row.responses_a, row.responses_b))
    if max(a, b) <= 1.25 * min(a, b):
        return LONGER[1]
    return LONGER[0] if a > b else LONGER[2]


def _lengths(rows: Sequence[Comparison]) -> Division:
    """Quarters by the characters of the whole conversation: before cutting, and the same for every model."""
    sizes = [sum(map(len, (*row.prompts, *row.responses_a, *row.responses_b))) for row in rows]
    low, middle, high = (int(q) for q in np.quantile(sizes, [0.25, 0.5, 0.75]))
    names = (
        f"up to {low:,} characters",
        f"{low + 1:,} to {middle:,}",
        f"{middle + 1:,} to {high:,}",
        f"over {high:,}",
    )
    return [names[k] for k in np.searchsorted([low, middle, high], sizes)], names


def _truncated(known: Predictions) -> Division | None:
    shares = known.extra.get("share_cut")
    if shares is None:
        return None
    return [TRUNCATED[0 if not share else 1 if share < 0.5 else 2] for share in shares], TRUNCATED


def _model_pairs(rows: Sequence[Comparison]) -> Division | None:
    """The most frequent pairs, without regard to order; all other pairs together."""
    pairs = [
        " / ".join(sorted((row.model_a, row.model_b))) if row.model_a and row.model_b else OTHER_PAIRS
        for row in rows
    ]
    frequent = [pair for pair, _ in Counter(pairs).most_common() if pair != OTHER_PAIRS][:MOST_MODEL_PAIRS]
    if not frequent:
        return None
    return [pair if pair in frequent else OTHER_PAIRS for pair in pairs], [*frequent, OTHER_PAIRS]


def _part(
    name: str, inside: NDArray[np.bool_], losses: Floats, hits: Floats, cluster: Ints, seed: int
) -> dict[str, Any]:
    n = int(inside.sum())
    if n < SMALLEST:
        return {"name": name, "n": n}
    return {
        "name": name,
        "n": n,
        "share": float(inside.mean()),
        "log_loss": float(losses[inside].mean()),
        "ci": bootstrap_interval(losses[inside], cluster[inside], seed=seed, replicates=REPLICATES),
        "accuracy": float(hits[inside].mean()),
    }
