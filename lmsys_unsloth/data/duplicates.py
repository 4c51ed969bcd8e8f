"""Which texts are the same, or nearly: MinHash sketches (Broder 1997) and locality-sensitive hashing."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.data.comparison import Comparison

PERMUTATIONS = 128
"""MinHash values per text: the standard error of an estimated similarity of 0.8 is 0.035."""
SHINGLE = 5
"""Texts are compared as sets of character 5-grams, which works for every script."""
CHUNK = 4096
"""Shingles sketched at once: a text of a megabyte would otherwise need half a gigabyte."""
ERROR_WEIGHTS = (0.05, 0.95)
"""Of false and of missed candidates in the index: false ones are sorted out, missed ones leak."""
SCHEME = "affine32"
MAXIMUM = np.uint32(0xFFFFFFFF)


def normalised(text: str) -> str:
    """The text without what a person would not call a difference.

    >>> normalised("What  is\\n１２ + 3? ")
    'what is 12 + 3?'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def content_key(row: Comparison) -> tuple[str, str, str]:
    """Equal for rows that compare the same two answers to the same prompt, in either order.

    >>> row = Comparison("7", ("Hi",), ("Hello!",), ("Yo",))
    >>> content_key(row) == content_key(row.swapped())
    True
    """
    first, second = sorted(normalised("\n".join(turns)) for turns in (row.responses_a, row.responses_b))
    return normalised("\n".join(row.prompts)), first, second


@dataclass(frozen=True, slots=True)
class Similar:
    """Two partitions of the same texts; equal numbers mean equal (or nearly equal) texts."""

    exact: NDArray[np.int64]
    """(texts,) equal after :func:`normalised`."""
    near: NDArray[np.int64]
    """(texts,) joined by a chain of pairs that are at least as similar as asked."""


def find_similar(texts: Iterable[str], threshold: float, what: str = "texts") -> Similar:
    """Group texts that are equal after :func:`normalised`, and those that are nearly equal.

    Args:
        threshold: Jaccard similarity of character 5-grams from which two texts are nearly equal;
            it is estimated, so that pairs within about 0.05 of the threshold may fall on either side.
        what: shown beside the progress bar.
    """
    numbers: dict[str, int] = {}
    exact = np.array([numbers.setdefault(normalised(text), len(numbers)) for text in texts], dtype=np.int64)
    if threshold >= 1 or len(numbers) < 2:
        return Similar(exact, exact)
    return Similar(exact, _near_groups(list(numbers), threshold, what)[exact])


def _near_groups(texts: Sequence[str], threshold: float, what: str) -> NDArray[np.int64]:
    """(texts,) component of each distinct text in the graph of similar pairs, named by its first member."""
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=ERROR_WEIGHTS)
    factors, offsets = (p[:, None].copy() for p in MinHash(PERMUTATIONS, scheme=SCHEME).permutations)
    sketches: list[LeanMinHash] = []
    parents = list(range(len(texts)))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    with progress(f"comparing {what}", len(texts), "text") as bar:
        for number, text in enumerate(texts):
            values = _sketch(_shingles(text), factors, offsets)
            sketch = LeanMinHash(seed=1, hashvalues=values, scheme=SCHEME)
            for candidate in index.query(sketch):
                home, other = root(number), root(candidate)
                if home != other and sketch.jaccard(sketches[candidate]) >= threshold:
                    parents[max(home, other)] = min(home, other)
            index.insert(number, sketch, check_duplication=False)
            sketches.append(sketch)
            bar.advance(1)
    return np.array([root(number) for number in range(len(texts))], dtype=np.int64)


def _sketch(
    shingles: NDArray[np.uint32], factors: NDArray[np.uint32], offsets: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """(permutations,) least value of each permutation: what MinHash.update_batch makes, without its loop.

    Args:
        shingles: (any,) hashes, repeats allowed.
        factors, offsets: (permutations, 1) of the library's permutations, ``h ↦ factor · h + offset``.
    """
    least = np.full(len(factors), MAXIMUM, dtype=np.uint32)
    for start in range(0, len(shingles), CHUNK):
        permuted = factors * shingles[start : start + CHUNK]
        permuted += offsets
        np.minimum(least, permuted.min(axis=1), out=least)
    return least


def _shingles(text: str) -> NDArray[np.uint32]:
    """Hashes of all character 5-grams (FNV-1a and MurmurHash3's finaliser); a shorter text is one shingle."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = min(SHINGLE, len(points))
    hashes = np.full(max(len(points) - width + 1, 1), 0x811C9DC5, dtype=np.uint32)
    for offset in range(width):
        hashes = (hashes ^ points[offset : offset + len(hashes)]) * np.uint32(0x01000193)
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
