"""Encoded rows from the cache equal fresh ones, and are never those of something else."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from factories import prompt_config as template
from prompt_rows import BUDGET, LONG, ROW, same
from small_tokenizers import encoder, small_llama3

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting import encoded_rows
from lmsys_unsloth.prompting.encoded_rows import encode_cached
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each call that was not answered from the cache."""
    calls: list[int] = []
    plain = RowEncoder.encode

    def counted(self: RowEncoder, rows: list[Comparison], progress: bool = False) -> list[EncodedRow]:
        calls.append(len(rows))
        return plain(self, rows, progress)

    monkeypatch.setattr(RowEncoder, "encode", counted)
    return calls


def test_cached_rows_equal_fresh_ones(cache_folder: Path, encodings: list[int]) -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    rows = [ROW, LONG, dataclasses.replace(ROW, prompts=("👩‍👩‍👧", ""), soft_label=(0.1, 0.2, 0.7))]
    fresh, again = encode_cached(made, rows), encode_cached(made, rows)
    assert encodings == [3]
    for one, other in zip(fresh, again, strict=True):
        assert same(one, other) and one.input_ids.dtype == other.input_ids.dtype
        for name in ("comparison", "n_turns_kept", "n_characters", "n_cut"):
            assert getattr(one, name) == getattr(other, name)


def test_jobs_that_start_together_encode_once(cache_folder: Path, encodings: list[int]) -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    together = threading.Barrier(4)

    def job(_: int) -> int:
        together.wait()
        return len(encode_cached(made, [ROW, LONG]))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(job, range(4))) == [2] * 4
    assert encodings == [2]


def test_no_rows_are_cached_as_no_rows(cache_folder: Path) -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    assert encode_cached(made, []) == encode_cached(made, []) == []


def test_a_changed_row_template_tokenizer_or_code_never_meets_old_ids(
    cache_folder: Path, encodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder("small-llama3", "v5")
    encode_cached(made, [ROW])
    for changed in (
        dataclasses.replace(ROW, responses_b=("Yo", "Yes!")),
        dataclasses.replace(ROW, label=0),
        ROW.swapped(),
    ):
        encode_cached(made, [changed])
    encode_cached(made, [ROW, ROW])
    for changes in (
        {"max_tokens": 300},
        {"answers": {"a": " a", "b": " b", "tie": " tie"}},
        {"system": "Judge."},
    ):
        encode_cached(RowEncoder(small_llama3(), template("v5", **changes)), [ROW])
    encode_cached(RowEncoder(small_llama3(), template("v5", truncation={"cut": "head"})), [ROW])
    encode_cached(encoder("smollm2", "v5"), [ROW])
    monkeypatch.setattr(encoded_rows, "_code_fingerprint", lambda: "another version")
    encode_cached(made, [ROW])
    assert len(encodings) == 11


@pytest.mark.slow
def test_a_tokenizer_that_gained_a_token_never_meets_old_ids(
    cache_folder: Path, encodings: list[int]
) -> None:
    from lmsys_unsloth.model import smollm2

    grown = smollm2.tokenizer()
    before = encode_cached(RowEncoder(grown, template("v5")), [ROW])[0]
    grown.add_tokens(["Hello!"])
    after = encode_cached(RowEncoder(grown, template("v5")), [ROW])[0]
    assert len(encodings) == 2 and not np.array_equal(before.input_ids, after.input_ids)


def test_a_damaged_cache_file_is_made_again(cache_folder: Path, encodings: list[int]) -> None:
    made = encoder("small-llama3", "v5")
    first = encode_cached(made, [ROW])
    for file in cache_folder.rglob("*.table"):
        file.write_bytes(file.read_bytes()[:-30])
    assert same(encode_cached(made, [ROW])[0], first[0])
    assert len(encodings) == 2
