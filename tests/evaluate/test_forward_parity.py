"""Forward passes of a model are compared line by line; a wrong or failing one is named, the others judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import config, head_config, model_config
from tiny import (
    ANSWERS,
    ARCHITECTURES,
    LONG_ANSWERS,
    VOCABULARY,
    Architecture,
    save_word_tokenizer,
    tiny_model,
    with_adapters,
)
from training_cases import rows

from lmsys_unsloth.evaluate.forward_parity import ForwardPass, choose_by_length, compare_forward_passes
from lmsys_unsloth.model import attention, loading
from lmsys_unsloth.model.answer_head import attach_head
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder
from lmsys_unsloth.model.parity import FACTOR

LENGTHS = [5, 9, 40, 20, 90, 12, 33, 60]
ORDINARY = ["ordinary, row by row", "perturbed by rounding", "ordinary, padded"]
FAST = ["fast, packed", "fast, row by row"]
KEPT = ["ordinary, padded, 4-bit kept", "fast, packed, 4-bit kept"]


def rows_of(lengths: list[int]) -> list[Any]:
    random = np.random.default_rng(0)
    ids = [random.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths]
    return [replace(row, input_ids=row_ids) for row, row_ids in zip(rows(len(ids)), ids, strict=True)]


def compare(model: Any, *overrides: str, answers: Any = ANSWERS) -> dict[str, ForwardPass]:
    """Compare the passes of a model that is not changed otherwise; lines by name."""
    attach_head(model, head_config(), answers)
    settings = config("eval.tokens_per_batch=200", *overrides)  # three batches
    return {each.name: each for each in compare_forward_passes(model, rows_of(LENGTHS), settings)}


def verdicts(lines: dict[str, ForwardPass]) -> list[str]:
    return [line.verdict for line in lines.values()]


@pytest.mark.numeric
@pytest.mark.parametrize("answers", [ANSWERS, LONG_ANSWERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_right_forward_passes_agree(architecture: Architecture, dtype: torch.dtype, answers: Any) -> None:
    lines = compare(with_adapters(tiny_model(architecture)).to(dtype), answers=answers)
    float32 = [] if dtype == torch.float32 else ["ordinary, float32"]
    assert list(lines) == [*ORDINARY, *FAST, *float32]
    assert verdicts(lines) == ["reference"] * 2 + ["ok"] * (3 + len(float32)), lines
    explained = lines[ORDINARY[1]]
    for line in lines.values():
        assert line.seconds is not None and line.seconds > 0 and line.peak_memory_gb is None
        assert line.probability_difference is not None and line.state_distance is not None
        assert line.state_distance <= FACTOR * explained.state_distance  # type: ignore[operator]
    assert lines[ORDINARY[0]].probability_difference == 0 and explained.probability_difference > 0  # type: ignore[operator]


def wrong(q: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.zeros_like(q)


def not_a_number(q: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.full_like(q, torch.nan)


@pytest.mark.parametrize(
    ("attend", "verdict", "note"),
    [(wrong, "bad", "times what rounding explains"), (not_a_number, "failed", "not finite")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_fast_decoder_is_found(
    dtype: torch.dtype, attend: Any, verdict: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "choose_attention", lambda *_: attend)
    lines = compare(tiny_model("llama").to(dtype))
    assert verdicts(lines)[:5] == ["reference", "reference", "ok", verdict, verdict]
    assert [name for name, line in lines.items() if line.is_bad] == FAST
    assert all(note in lines[name].note for name in FAST)


def test_answers_of_several_tokens_are_compared_at_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = FastDecoder.__call__

    def shifted(self: FastDecoder, input_ids: torch.Tensor, lengths: Any, last: int = 1) -> torch.Tensor:
        return ordinary(self, input_ids, lengths, last).flip(1)

    monkeypatch.setattr(FastDecoder, "__call__", shifted)
    assert verdicts(compare(tiny_model("llama"), answers=ANSWERS))[3:] == ["ok", "ok"]
    assert verdicts(compare(tiny_model("llama"), answers=LONG_ANSWERS))[3:] == ["bad", "bad"]


def test_a_failing_forward_pass_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ordinary = FastDecoder.__call__

    def packed_fails(self: FastDecoder, input_ids: torch.Tensor, lengths: Any, last: int = 1) -> torch.Tensor:
        if len(lengths) > 1:
            raise RuntimeError("no kernel image is available\nmany more lines")
        return ordinary(self, input_ids, lengths, last)

    monkeypatch.setattr(FastDecoder, "__call__", packed_fails)
    lines = compare(tiny_model("llama"))
    assert verdicts(lines) == ["reference", "reference", "ok", "failed", "ok"]
    failed = lines[FAST[0]]
    assert failed.note == "RuntimeError: no kernel image is available" and failed.is_bad
    assert failed.seconds is None and failed.state_distance is None
    assert "Traceback" in caplog.text  # the whole error is in the log


def test_out_of_memory_is_named_in_three_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB and so on")

    monkeypatch.setattr(FastDecoder, "__call__", large)
    assert {compare(tiny_model("llama"))[name].note for name in FAST} == {"out of memory"}


@pytest.mark.parametrize("result", ["error", "not a number"])
def test_without_a_reference_the_others_are_computed_and_not_judged(
    result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, ids: Any, lengths: Any, last: int = 1) -> torch.Tensor:
        if result == "error":
            raise RuntimeError("mask too small")
        return torch.full((len(lengths), last, 64), torch.nan)

    monkeypatch.setattr(ReferenceDecoder, "__call__", broken)
    lines = compare(tiny_model("llama"))
    assert verdicts(lines)[0] == "failed" and verdicts(lines)[3:] == ["unknown", "unknown"]
    assert all(lines[name].seconds for name in FAST)


def test_a_model_that_the_fast_decoder_does_not_know_is_not_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = loading.make_decoder

    def make(model: Any, *, fast: bool) -> Any:
        if fast:
            raise ValueError("model_type 'other': the fast decoder does not know it")
        return ordinary(model, fast=False)

    monkeypatch.setattr(loading, "make_decoder", make)
    lines = compare(tiny_model("llama"))
    assert verdicts(lines) == ["reference", "reference", "ok", "refused", "refused"]
    assert not any(line.is_bad for line in lines.values()) and "'other'" in lines[FAST[0]].note


@pytest.mark.numeric
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_bit_weights_are_compared_kept_and_dequantised(
    architecture: Architecture, dtype: str, adapters: bool, tmp_path: Path
) -> None:
    model = loading.load_model(quantised(architecture, tmp_path, dtype=dtype))
    lines = compare(with_adapters(model) if adapters else model)
    float32 = [] if dtype == "float32" else ["ordinary, float32"]
    assert list(lines) == [*ORDINARY, *FAST, *KEPT, *float32]
    assert verdicts(lines)[2:] == ["ok"] * (5 + len(float32)), lines


def quantised(architecture: Architecture, folder: Path, **changes: Any) -> Any:
    tiny_model(architecture).save_pretrained(folder)
    save_word_tokenizer(folder, VOCABULARY)
    settings = {"load_in_4bit": True, "resident": "4bit", **changes}
    return model_config(folder, **settings)


def test_what_does_not_fit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loading.load_model(quantised("llama", tmp_path, dtype="bfloat16"))
    monkeypatch.setattr(loading.memory, "free_bytes", lambda: 1000)
    lines = compare(model)
    assert verdicts(lines)[2:] == ["ok"] * 5 + ["skipped"] * 2
    assert list(lines)[-2:] == ["4-bit, dequantised once", "ordinary, float32"]
    assert not any(line.is_bad for line in lines.values())
    forced = compare(model, "model.resident=bf16")
    assert verdicts(forced)[2:] == ["ok"] * 5 + ["skipped"]
    assert "float32 weights need" in forced["ordinary, float32"].note


def test_rows_are_chosen_from_the_shortest_to_the_longest() -> None:
    every = rows_of([50, 3, 41, 8, 30, 22, 17, 60, 12, 35, 5])
    assert sorted(len(row.input_ids) for row in choose_by_length(every, 3)) == [3, 22, 60]
    chosen = choose_by_length(every)
    assert len(chosen) == 8 and [row for row in every if any(row is c for c in chosen)] == chosen
    assert choose_by_length(every[:2]) == every[:2]
