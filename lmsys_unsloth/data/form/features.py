"""Numbers that describe the form of responses: lengths, lists, refusals, words shared with the prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.data.comparison import Comparison

MEASURES = (
    "length", "list items", "code blocks", "bold or headings", "similarity to the prompt",
    "distinct words", "distinct word triples", "sentence length", "refusals", "complete ending", "lines",
    "word length", "other than ASCII", "words of the prompt",
)  # fmt: skip
"""What is measured of each response, see :func:`_measures`."""

COMMON = (
    "length gap", "list gap", "code gap", "similarity of the answers", "identical answers", "turns",
    "prompt length",
)  # fmt: skip
"""What swapping the responses does not change: absolute differences, and what concerns both."""

FEATURES = (*MEASURES, *COMMON, *(f"mean {name}" for name in MEASURES))
"""Columns of :func:`form_features`: differences of measures, A minus B, what is common, and their means."""

COMPARED_CHARACTERS = 2000
"""Number of characters at the start of each text whose words are looked at; later ones change little."""

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]", re.MULTILINE)
_EMPHASIS = ("**", "\n# ", "\n## ", "\n### ")
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
_REFUSAL = re.compile(
    r"\b(?:sorry|as an ai|language model|cannot|can['’]t|unable to|i don['’]t|i do not|not able)\b"
)
_LAST_CHARACTERS = (".", "!", "?", '"', "”", ")", "`", ":")


def form_features(rows: Sequence[Comparison]) -> NDArray[np.float64]:
    """Compute the matrix ``[rows, features]`` with the columns of :data:`FEATURES`."""
    return np.array([_features(row) for row in rows], dtype=np.float64).reshape(len(rows), len(FEATURES))


def swapped_features(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The features ``[rows, features]`` of the same rows with their responses swapped."""
    return matrix * np.where(np.arange(len(FEATURES)) < len(MEASURES), -1.0, 1.0)


def _features(row: Comparison) -> list[float]:
    a, b, prompt = ("\n".join(texts) for texts in (row.responses_a, row.responses_b, row.prompts))
    words_a, words_b, words = _words(a), _words(b), frozenset(_words(prompt))
    of_a, of_b = _measures(a, words_a, words), _measures(b, words_b, words)
    gaps = [in_a - in_b for in_a, in_b in zip(of_a, of_b, strict=True)]
    common = [
        *(abs(gap) for gap in gaps[:3]),
        _similarity(frozenset(words_a), frozenset(words_b)),
        float(a == b),
        math.log1p(len(row.prompts)),
        math.log1p(len(prompt)),
    ]
    return [*gaps, *common, *((in_a + in_b) / 2 for in_a, in_b in zip(of_a, of_b, strict=True))]


def _measures(text: str, words: Sequence[str], prompt: frozenset[str]) -> list[float]:
    """Measures of one response; numbers of things as log(1 + count), the others are shares or means."""
    start, distinct = text[:COMPARED_CHARACTERS], frozenset(words)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    sentences = max(len(_SENTENCE_END.findall(start)), 1)
    return [
        math.log1p(len(text)),
        math.log1p(len(_LIST_ITEM.findall(text))),
        math.log1p(text.count("```")),
        math.log1p(sum(map(f"\n{text}".count, _EMPHASIS))),
        _similarity(distinct, prompt),
        len(distinct) / max(len(words), 1),
        len(set(triples)) / max(len(triples), 1),
        math.log1p(len(words) / sentences),
        math.log1p(len(_REFUSAL.findall(start.lower()))),
        float(text.rstrip().endswith(_LAST_CHARACTERS)),
        math.log1p(text.count("\n")),
        sum(map(len, words)) / max(len(words), 1),
        sum(character > "\x7f" for character in start) / max(len(start), 1),
        len(distinct & prompt) / max(len(prompt), 1),
    ]


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:COMPARED_CHARACTERS].lower())


def _similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words; 1 for two empty texts.

    >>> _similarity(frozenset({"a", "b"}), frozenset({"b"}))
    0.5
    """
    union = len(first | second)
    return len(first & second) / union if union else 1.0
