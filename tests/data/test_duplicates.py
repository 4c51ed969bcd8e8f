"""Equal and nearly equal texts share a group; others do not."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from datasketch import LeanMinHash, MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsys_unsloth.data import duplicates
from lmsys_unsloth.data.duplicates import find_similar, normalised

LONG = "Explain to me in plain words how a sailing boat can move against the wind, and what a keel is for."


def _shingle_set(text: str) -> set[str]:
    return {text[i : i + duplicates.SHINGLE] for i in range(len(text) - duplicates.SHINGLE + 1)}


def _jaccard(first: str, second: str) -> float:
    a, b = _shingle_set(normalised(first)), _shingle_set(normalised(second))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Hi  there", "hi there "),
        ("ＡＢＣ１", "abc1"),
        ("Straße", "STRASSE"),
        ("a\r\nb", "a b"),
        ("ﬁ", "FI"),
        ("", " \n"),
    ],
)
def test_differences_that_do_not_count(first: str, second: str) -> None:
    assert normalised(first) == normalised(second)


def test_equal_and_near_groups() -> None:
    texts = [
        LONG,
        "Something else entirely.",
        LONG.upper(),
        LONG.replace("words", "word"),
        "",
        "Hi",
        "hi",
        "Ho",
    ]
    similar = find_similar(texts, 0.8)
    assert similar.exact.tolist() == [0, 1, 0, 2, 3, 4, 4, 5]
    assert similar.near.tolist() == [0, 1, 0, 0, 3, 4, 4, 5]


def test_a_chain_joins_what_is_not_similar_itself() -> None:
    steps = [LONG + "".join(f" {n}{n}" for n in range(i)) for i in range(0, 40, 4)]
    assert _jaccard(steps[0], steps[-1]) < 0.6 < 0.8 < _jaccard(steps[0], steps[1])
    assert len(set(find_similar(steps, 0.8).near.tolist())) == 1


def test_threshold_one_groups_equal_texts_only() -> None:
    similar = find_similar([LONG, LONG + "!", LONG], 1.0)
    assert similar.near.tolist() == similar.exact.tolist() == [0, 1, 0]


def test_every_script() -> None:
    japanese = "帆船がどうして風上に向かって進むことができるのか、分かりやすく説明してください。"
    arabic = "اشرح لي بكلمات بسيطة كيف يمكن للمركب الشراعي أن يتحرك عكس اتجاه الريح وما فائدة العارضة"
    texts = [japanese, japanese + "！", arabic, arabic + " ؟", LONG]
    assert find_similar(texts, 0.8).near.tolist() == [0, 0, 2, 2, 4]


def _changed(rng: random.Random, words: list[str], share: float) -> str:
    return " ".join("".join(rng.choices("abcdefgh", k=6)) if rng.random() < share else word for word in words)


def test_pairs_above_the_threshold_are_found_and_others_are_not() -> None:
    rng = random.Random(0)
    pairs = []
    for _ in range(200):
        words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randrange(3, 9))) for _ in range(60)]
        pairs.append((" ".join(words), _changed(rng, words, rng.choice((0.02, 0.3)))))
    near = find_similar([text for pair in pairs for text in pair], 0.8).near.reshape(-1, 2)
    joined = near[:, 0] == near[:, 1]
    similarity = np.array([_jaccard(*pair) for pair in pairs])
    assert joined[similarity > 0.9].all()
    assert not joined[similarity < 0.65].any()
    assert len(np.unique(near)) == 400 - joined.sum(), "unrelated texts stay apart"


def test_texts_of_one_template_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, similarity = random.Random(2), duplicates._similarity
    template = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(40)]
    texts = [_changed(rng, template, 0.02) for _ in range(4000)]
    copies = [f"{text}!" for text in texts[:100]]
    compared = []

    def counted(sketches: Any, first: Any, second: Any) -> Any:
        compared[-1] += len(first)
        return similarity(sketches, first, second)

    monkeypatch.setattr(duplicates, "_similarity", counted)
    for neighbours in (duplicates.NEIGHBOURS, len(texts)):
        monkeypatch.setattr(duplicates, "NEIGHBOURS", neighbours)
        compared.append(0)
        near = find_similar([*texts, *copies], 0.9).near
        assert (near[:100] == near[4000:]).all()
        assert len(np.unique(near)) > 100, "not all are similar"
    assert 0 < compared[0] < 0.5 * compared[1]


def test_the_sketch_is_that_of_the_library() -> None:
    shingles = duplicates._shingles(LONG * 200)
    library = MinHash(duplicates.PERMUTATIONS, scheme=duplicates.SCHEME)
    factors, offsets = (p[:, None] for p in library.permutations)
    sketch = duplicates._sketch(shingles, factors, offsets)
    for start in range(0, len(shingles), 997):  # any chunks give the same least values
        part = factors * shingles[start : start + 997] + offsets
        assert (sketch <= part.min(axis=1)).all()
    assert np.isin(sketch, factors * shingles + offsets).all()
    assert sketch.dtype == library.hashvalues.dtype


@settings(max_examples=25)
@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_texts_are_partitioned(texts: list[str]) -> None:
    similar = find_similar(texts, 0.8)
    for partition in (similar.exact, similar.near):
        assert partition.shape == (len(texts),)
    for i, j in itertools.combinations(range(len(texts)), 2):
        same = normalised(texts[i]) == normalised(texts[j])
        assert (similar.exact[i] == similar.exact[j]) == same
        if same:
            assert similar.near[i] == similar.near[j]


def test_a_megabyte_in_little_memory() -> None:
    text = "".join(random.Random(0).choices("abcdefghij ", k=1_000_000))
    assert find_similar([text, text[:-5] + "zzzzz", "short"], 0.8).near.tolist() == [0, 0, 2]


def _groups_by_library(texts: list[str], threshold: float) -> list[int]:
    """Groups of distinct texts, each compared with all candidates of datasketch's own index."""
    index = MinHashLSH(
        threshold=threshold, num_perm=duplicates.PERMUTATIONS, weights=duplicates.ERROR_WEIGHTS
    )
    factors, offsets = (
        p[:, None].copy() for p in MinHash(duplicates.PERMUTATIONS, scheme=duplicates.SCHEME).permutations
    )
    sketches: list[np.ndarray] = []
    groups = np.arange(len(texts))
    for number, text in enumerate(texts):
        values = duplicates._sketch(duplicates._shingles(normalised(text)), factors, offsets)
        sketch = LeanMinHash(seed=1, hashvalues=values, scheme=duplicates.SCHEME)
        similar = [i for i in index.query(sketch) if (sketches[i] == values).mean() >= threshold]
        linked = [number, *groups[similar].tolist()]
        groups[np.isin(groups, linked)] = min(linked)
        index.insert(number, sketch)
        sketches.append(values)
    return list(groups.tolist())


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_sorted_bands_give_the_groups_of_the_library_index(threshold: float) -> None:
    rng = random.Random(1)
    templates = [" ".join("".join(rng.choices("abcdef", k=5)) for _ in range(20)) for _ in range(8)]
    texts = [_changed(rng, rng.choice(templates).split(), rng.choice((0.02, 0.05, 0.3))) for _ in range(400)]
    texts = list(dict.fromkeys(texts))
    expected = _groups_by_library(texts, threshold)
    assert 8 <= len(set(expected)) < len(texts), "some texts are joined, some are not"
    assert find_similar(texts, threshold).near.tolist() == expected
