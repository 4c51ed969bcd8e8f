"""Scoring copes with little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_tiny_llama, tolerance
from training_cases import adapted, rows

from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model.answer_head import AnswerHead
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.parity import FallbackDecoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.numeric
def test_scoring_goes_on_in_parts_when_memory_is_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ordinary = adapted(folder), AnswerHead.logits
    expected = score_rows(FastDecoder(model), rows(), 256)

    def small_memory(head: Any, decoder: Any, batch: Any) -> torch.Tensor:
        if sum(batch.lengths) > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return ordinary(head, decoder, batch)

    monkeypatch.setattr(AnswerHead, "logits", small_memory)
    found = score_rows(FastDecoder(model), rows(), 256)
    np.testing.assert_allclose(found, expected, atol=tolerance(products=2), rtol=0)


@pytest.mark.numeric
def test_scoring_goes_on_when_the_fast_decoder_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, ordinary, calls = adapted(folder), FastDecoder.__call__, []
    expected = score_rows(FastDecoder(model), rows(), 64)

    def fail_in_the_second_batch(self: FastDecoder, *arguments: Any, **more: Any) -> torch.Tensor:
        calls.append(True)
        if len(calls) > 1:
            raise RuntimeError("no kernel image is available")
        return ordinary(self, *arguments, **more)

    monkeypatch.setattr(FastDecoder, "__call__", fail_in_the_second_batch)
    decoder = FallbackDecoder(FastDecoder(model))
    found = [score_rows(decoder, rows(), 64) for _ in range(2)]
    assert len(calls) == 2 and caplog.text.count("the fast decoder failed") == 1
    for each in found:
        np.testing.assert_allclose(each, expected, atol=tolerance(products=2), rtol=0)
