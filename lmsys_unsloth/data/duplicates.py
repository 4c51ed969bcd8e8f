"""Equal and nearly equal texts: MinHash sketches (Broder 1997) and locality-sensitive hashing."""

from __future__ import annotations

import hashlib
import tempfile
import unicodedata
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
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
"""Shingles sketched, and pairs compared, at once: a text of a megabyte would need half a gigabyte."""
ERROR_WEIGHTS = (0.05, 0.95)
"""Weights of false and of missed candidates in the index: false ones are sorted out, missed ones leak."""
NEIGHBOURS = 32
"""Members of its bucket that a text is compared with, in the order of their keys."""
MISSED = 1e-4
"""Largest share of the pairs at the threshold that the fine bands of a crowded bucket may miss."""
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


def find_similar(texts: Iterable[str], threshold: float) -> Similar:
    """Group texts that are equal after :func:`normalised`, and those that are nearly equal.

    The texts are read one by one and not kept; their sketches, 512 bytes each, are in a temporary file.

    Args:
        texts: the texts.
        threshold: Jaccard similarity of character 5-grams from which two texts are nearly equal;
            it is estimated, so that pairs within about 0.05 of the threshold may fall on either side.
    """
    from datasketch import MinHash

    factors, offsets = (p[:, None].copy() for p in MinHash(PERMUTATIONS, scheme=SCHEME).permutations)
    numbers: dict[bytes, int] = {}
    found, highest = array("q"), -1
    with tempfile.TemporaryFile() as file:
        for text in map(normalised, texts):
            number = numbers.setdefault(hashlib.sha256(text.encode()).digest()[:16], len(numbers))
            if threshold < 1 and number > highest:
                file.write(_sketch(_shingles(text), factors, offsets).tobytes())
                highest = number
            found.append(number)
        exact, count = np.array(found, dtype=np.int64), len(numbers)
        if threshold >= 1 or count < 2:
            return Similar(exact, exact)
        del numbers, found
        file.flush()
        sketches = np.memmap(file, dtype=np.uint32, mode="r", shape=(count, PERMUTATIONS))
        return Similar(exact, _near_groups(sketches, threshold)[exact])


def with_progress(rows: Sequence[Comparison], what: str) -> Iterator[Comparison]:
    """Yield rows while a progress bar shows that their ``what`` are compared."""
    with progress(f"comparing {what}", len(rows), "row") as bar:
        for row in rows:
            yield row
            bar.advance(1)


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


def _near_groups(sketches: NDArray[np.uint32], threshold: float) -> NDArray[np.int64]:
    """First member of the component of each distinct text in the graph of similar pairs, ``[texts]``.

    Candidates are the pairs that agree in a whole band of the sketch, as in datasketch's MinHashLSH; here the
    bands are sorted one after the other, which takes 40 bytes a text where its dictionaries take kilobytes.
    Texts made from one template agree in bands without being similar, so that the pairs of a crowded bucket
    are too many. Its members are compared where they agree in a finer band too; where that bucket is crowded
    again, with as many others as :data:`NEIGHBOURS` in each finer band.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=ERROR_WEIGHTS)
    groups = np.arange(len(sketches))
    for band in range(index.b):
        keys = _keys(sketches[:, band * index.r : (band + 1) * index.r])
        groups, crowded = _join_similar(groups, sketches, np.arange(len(sketches)), keys, threshold)
        for fine in _fine_bands(threshold) if len(crowded) else ():
            both = _keys(np.column_stack([keys[crowded], _keys(sketches[crowded, fine])]))
            groups, _ = _join_similar(groups, sketches, crowded, both, threshold)
    return groups


def _fine_bands(threshold: float) -> list[slice]:
    """Divide a sketch into the widest bands that miss at most :data:`MISSED` pairs: ``(1 - t^width)^bands``.

    >>> len(_fine_bands(0.8)), _fine_bands(0.8)[0]
    (25, slice(0, 5, None))
    """

    def missed(width: int) -> float:
        return float((1 - threshold**width) ** (PERMUTATIONS // width))

    width = next((width for width in range(16, 1, -1) if missed(width) <= MISSED), 1)
    return [slice(start, start + width) for start in range(0, PERMUTATIONS - width + 1, width)]


def _join_similar(
    groups: NDArray[np.int64], sketches: NDArray[np.uint32], members: NDArray[np.int64],
    keys: NDArray[np.uint64], threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Join the groups of similar members of one bucket: those with equal keys.

    Returns:
        The joined groups, and the members of crowded buckets, in which each member has been compared with
        :data:`NEIGHBOURS` others only.
    """
    order = np.argsort(keys, kind="stable")
    keys, sorted_members = keys[order], members[order]
    links: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for distance in range(1, NEIGHBOURS + 1):
        same = keys[distance:] == keys[:-distance]
        if not same.any():
            break
        pairs = sorted_members[:-distance][same], sorted_members[distance:][same]
        links.append(_similar_pairs(groups, sketches, *pairs, threshold))
        if distance == 1:  # in a bucket of near copies these join all, and no other pair must be compared
            groups = _join(groups, *links.pop())
    if links:
        groups = _join(groups, *(np.concatenate(ends) for ends in zip(*links, strict=True)))
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    sizes = np.diff(np.r_[starts, len(keys)])
    return groups, sorted_members[np.repeat(sizes > NEIGHBOURS + 1, sizes)]


def _keys(band: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Hash the values ``[texts, values]`` of a band; equal hashes of other values cost one comparison."""
    keys = np.full(len(band), 0xCBF29CE484222325, dtype=np.uint64)
    for values in band.T:
        keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _similar_pairs(
    groups: NDArray[np.int64],
    sketches: NDArray[np.uint32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those pairs ``(first[i], second[i])`` of different groups that are similar."""
    apart = groups[first] != groups[second]
    first, second = first[apart], second[apart]
    similar = _similarity(sketches, first, second) >= threshold
    return first[similar], second[similar]


def _join(
    groups: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Join the groups of each pair; a group's number is its first member."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(first):
        return groups
    ends = groups[first], groups[second]
    graph = coo_array((np.ones(len(first)), ends), (len(groups), len(groups)))
    _, components = connected_components(graph, directed=False)
    _, lowest = np.unique(components, return_index=True)
    return np.asarray(lowest[components[groups]], dtype=np.int64)


def _similarity(
    sketches: NDArray[np.uint32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of each pair of texts: the share of equal values."""
    parts = [np.empty(0)]
    for start in range(0, len(first), CHUNK):
        part = slice(start, start + CHUNK)
        parts.append((sketches[first[part]] == sketches[second[part]]).mean(axis=1))
    return np.concatenate(parts)


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
