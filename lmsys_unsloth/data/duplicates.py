"""Equal and nearly equal texts: MinHash sketches (Broder 1997) and locality-sensitive hashing."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
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
"""Weights of false and of missed candidates in the index: false ones are sorted out, missed ones leak."""
SCHEME = "affine32"
"""datasketch's 32-bit permutations ``h -> factor * h + offset``."""
MAXIMUM = np.uint32(0xFFFFFFFF)


def normalised(text: str) -> str:
    """Remove differences in case, white space and Unicode form (NFKC).

    >>> normalised("What  is\\n１２ + 3? ")
    'what is 12 + 3?'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def content_key(row: Comparison) -> tuple[str, str, str]:
    """Return normalised prompt and responses, equal for rows with the same responses in either order.

    >>> row = Comparison("7", ("Hi",), ("Hello!",), ("Yo",))
    >>> content_key(row) == content_key(row.swapped())
    True
    """
    first, second = sorted(normalised("\n".join(turns)) for turns in (row.responses_a, row.responses_b))
    return normalised(row.prompt_text), first, second


@dataclass(frozen=True, slots=True)
class Similar:
    """Two partitions of the same texts; equal numbers mean equal (or nearly equal) texts."""

    exact: NDArray[np.int64]
    """``[texts]``: equal after :func:`normalised`."""
    near: NDArray[np.int64]
    """``[texts]``: linked by a chain of pairs that are at least as similar as the threshold."""


def find_similar(texts: Iterable[str], threshold: float, what: str = "texts") -> Similar:
    """Group texts that are equal after :func:`normalised`, and those that are nearly equal.

    Args:
        texts: the texts.
        threshold: Jaccard similarity of character 5-grams from which two texts are nearly equal;
            it is estimated, so that pairs within about 0.05 of the threshold may fall on either side.
        what: name of the texts beside the progress bar.
    """
    numbers: dict[str, int] = {}
    exact = np.array([numbers.setdefault(normalised(text), len(numbers)) for text in texts], dtype=np.int64)
    if threshold >= 1 or len(numbers) < 2:
        return Similar(exact, exact)
    return Similar(exact, _near_groups(list(numbers), threshold, what)[exact])


def join_groups(groups: NDArray[np.int64], columns: Iterable[Iterable[Hashable]]) -> NDArray[np.int64]:
    """Join groups that share a value in any of the columns, along chains.

    Args:
        groups: ``[rows]`` group of each row.
        columns: values of each column, one for each row; None connects nothing.

    Returns:
        ``[rows]`` number of the first row of each row's joined group.

    >>> join_groups(np.array([0, 0, 1, 2]), [("x", None, None, "x")]).tolist()
    [0, 0, 2, 0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links: list[tuple[int, int]] = []
    for column in (groups.tolist(), *columns):
        first: dict[Hashable, int] = {}
        links += [
            (row, first.setdefault(value, row)) for row, value in enumerate(column) if value is not None
        ]
    graph = coo_array((np.ones(len(links)), tuple(zip(*links, strict=True))), (len(groups), len(groups)))
    _, components = connected_components(graph, directed=False)
    _, first_rows = np.unique(components, return_index=True)
    return np.asarray(first_rows[components], dtype=np.int64)


def _near_groups(texts: Sequence[str], threshold: float, what: str) -> NDArray[np.int64]:
    """First member of the component of each distinct text in the graph of similar pairs, ``[texts]``."""
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=ERROR_WEIGHTS)
    factors, offsets = (p[:, None].copy() for p in MinHash(PERMUTATIONS, scheme=SCHEME).permutations)
    sketches = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    groups = np.arange(len(texts))
    with progress(f"comparing {what}", len(texts), "text") as bar:
        for number, text in enumerate(texts):
            sketches[number] = values = _sketch(_shingles(text), factors, offsets)
            sketch = LeanMinHash(seed=1, hashvalues=values, scheme=SCHEME)
            if candidates := index.query(sketch):
                similarity = (sketches[candidates] == values).mean(axis=1)
                linked = np.unique(groups[candidates][similarity >= threshold])
                groups[number] = min([number, *linked[:1]])
                if len(linked) > 1:
                    groups[np.isin(groups, linked)] = linked[0]
            index.insert(number, sketch, check_duplication=False)
            bar.advance(1)
    return groups


def _sketch(
    shingles: NDArray[np.uint32], factors: NDArray[np.uint32], offsets: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Compute the smallest value of each permutation: MinHash.update_batch without its loop.

    Args:
        shingles: hashes, repeats allowed.
        factors: ``[permutations, 1]``.
        offsets: ``[permutations, 1]``.

    Returns:
        ``[permutations]``.
    """
    least = np.full(len(factors), MAXIMUM, dtype=np.uint32)
    for start in range(0, len(shingles), CHUNK):
        permuted = factors * shingles[start : start + CHUNK]
        permuted += offsets
        np.minimum(least, permuted.min(axis=1), out=least)
    return least


def _shingles(text: str) -> NDArray[np.uint32]:
    """Hash all character 5-grams (FNV-1a and MurmurHash3's finaliser); a shorter text is one shingle."""
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
