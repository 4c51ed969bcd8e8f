"""A fast decoder that fails or computes something else is not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import model_config
from tiny import save_tiny_llama
from training_cases import rows

from lmsys_unsloth.model import attention, loading
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder
from lmsys_unsloth.model.parity import choose_decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("trouble", ["wrong", "not a number", "broken"])
def test_a_wrong_or_broken_fast_decoder_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    model = loading.load_model(model_config(folder))
    assert isinstance(choose_decoder(model, rows(), fast=True), FastDecoder)
    assert isinstance(choose_decoder(model, rows(), fast=False), ReferenceDecoder)

    def attend(q: torch.Tensor, *_: Any) -> torch.Tensor:
        if trouble == "broken":
            raise RuntimeError("no kernel for this GPU")
        return torch.full_like(q, torch.nan if trouble == "not a number" else 0.0)

    monkeypatch.setattr(attention, "choose_attention", lambda *_: attend)
    with caplog.at_level("WARNING"):
        assert isinstance(choose_decoder(model, rows(), fast=True), ReferenceDecoder)
    assert "it is not used" in caplog.text
