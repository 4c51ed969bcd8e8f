"""Loading through unsloth: 4-bit models compute what their own dequantised weights say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from tiny import ARCHITECTURES, NO_TARGET, Architecture, random_rows, reference, tiny_model, with_adapters

from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading, smollm2
from lmsys_unsloth.model.answer_head import answer_probabilities
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder

ANSWERS = ((11,), (29,), (173,))


def saved(architecture: Architecture, folder: Path) -> ModelConfig:
    tiny_model(architecture).save_pretrained(folder)
    smollm2.tokenizer().save_pretrained(folder)
    return ModelConfig(
        name="tiny", architecture=architecture, repo=None, package=None, path=str(folder), revision=None,
        load_in_4bit=True, resident="4bit", dtype="float32", max_seq_length=256, learning_rate=1e-3,
    )  # fmt: skip


def with_dequantised_weights(architecture: Architecture, quantised: Any) -> Any:
    """A plain float32 model whose linear layers hold the values that NF4 stands for."""
    plain = tiny_model(architecture)
    count = 0
    for name, module in quantised.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.float()
            count += 1
    assert count == 4 * 7
    return plain


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_bits_equal_their_dequantised_weights(architecture: Architecture, tmp_path: Path) -> None:
    quantised, rows = loading.load_model(saved(architecture, tmp_path)), random_rows()
    expected = torch.stack(
        [reference(with_dequantised_weights(architecture, quantised), ids) for ids in rows]
    )
    assert (
        expected - torch.stack([reference(tiny_model(architecture), ids) for ids in rows])
    ).abs().max() > 1e-2
    batch = collate(rows, [NO_TARGET] * len(rows))
    with torch.no_grad():
        ours = answer_probabilities(FastDecoder(quantised), batch, ANSWERS)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_bits_with_adapters_equal_their_dequantised_weights(
    architecture: Architecture, tmp_path: Path
) -> None:
    quantised, rows = loading.load_model(saved(architecture, tmp_path)), random_rows()
    plain = with_adapters(with_dequantised_weights(architecture, quantised))
    without = torch.stack([reference(with_dequantised_weights(architecture, quantised), ids) for ids in rows])
    expected = torch.stack([reference(plain, ids) for ids in rows])
    assert (expected - without).abs().max() > 1e-3
    batch = collate(rows, [NO_TARGET] * len(rows))
    with torch.no_grad():
        ours = answer_probabilities(FastDecoder(with_adapters(quantised)), batch, ANSWERS)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_gemma2_keeps_its_caps_on_a_cpu(tmp_path: Path) -> None:
    """SDPA would drop the cap on attention logits in silence."""
    model: Any = loading.load_model(saved("gemma2", tmp_path))
    assert model.config._attn_implementation == "eager"
    assert (model.config.final_logit_softcapping, model.config.attn_logit_softcapping) == (30.0, 50.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_hub_out_of_reach_names_both_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    config = ModelConfig(
        name="llama3", architecture="llama", repo="unsloth/llama-3-8b-Instruct-bnb-4bit", package=None,
        path=None, revision=None, load_in_4bit=True, resident="4bit", dtype="auto", max_seq_length=8192,
        learning_rate=2e-4,
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"(?s)nothing is cached.*hf download unsloth/llama-3.*model.path=DIR"
    ):
        loading.local_folder(config, weights=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resident_weights_are_the_same_values(architecture: Architecture, tmp_path: Path) -> None:
    config = saved(architecture, tmp_path)
    quantised = loading.load_model(config)
    resident: Any = loading.load_model(config.model_copy(update={"resident": "bf16"}))
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in resident.modules())
    batch = collate(random_rows(), [NO_TARGET] * 6)
    with torch.no_grad():
        one, other = (
            answer_probabilities(FastDecoder(with_adapters(m)), batch, ANSWERS) for m in (quantised, resident)
        )
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_weights_become_resident_only_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved("llama", tmp_path).model_copy(update={"resident": "auto"})
    monkeypatch.setattr(loading.memory, "free_bytes", lambda: 1_000_000)
    tight: Any = loading.load_model(config)
    assert any(isinstance(module, bnb.nn.Linear4bit) for module in tight.modules())
    monkeypatch.setattr(loading.memory, "free_bytes", lambda: 10_000_000_000)
    roomy: Any = loading.load_model(config)
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in roomy.modules())
