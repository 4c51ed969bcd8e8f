"""Loading through unsloth: 4-bit models compute what their own dequantised weights say."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from factories import model_config
from peft import LoraConfig, get_peft_model
from tiny import (
    ARCHITECTURES,
    VOCABULARY,
    Architecture,
    probabilities,
    random_rows,
    reference,
    save_word_tokenizer,
    tiny_model,
    tolerance,
    with_adapters,
)

from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading, trained_weights

ROOT = Path(__file__).resolve().parents[2]


def saved(architecture: Architecture, folder: Path, **changes: Any) -> ModelConfig:
    """Save a tiny model; its configuration loads it in 4 bits and leaves it so."""
    tiny_model(architecture).save_pretrained(folder)
    save_word_tokenizer(folder, VOCABULARY)
    settings = {"load_in_4bit": True, "resident": "4bit", **changes}
    return model_config(folder, **settings)


def with_dequantised_weights(architecture: Architecture, quantised: Any) -> Any:
    """Return a plain float32 model whose linear layers hold the values of the 4-bit weights."""
    plain = tiny_model(architecture)
    count = 0
    for name, module in quantised.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.float()
            count += 1
    assert count == 4 * 7
    return plain


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_bits_equal_their_dequantised_weights(architecture: Architecture, tmp_path: Path) -> None:
    quantised, rows = loading.load_model(saved(architecture, tmp_path)), random_rows()
    expected = torch.stack(
        [reference(with_dequantised_weights(architecture, quantised), ids) for ids in rows]
    )
    assert (
        expected - torch.stack([reference(tiny_model(architecture), ids) for ids in rows])
    ).abs().max() > 1e-2
    torch.testing.assert_close(probabilities(quantised, rows), expected, atol=tolerance(), rtol=0)


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_bits_with_adapters_equal_their_dequantised_weights(
    architecture: Architecture, tmp_path: Path
) -> None:
    quantised, rows = loading.load_model(saved(architecture, tmp_path)), random_rows()
    plain = with_adapters(with_dequantised_weights(architecture, quantised))
    without = torch.stack([reference(with_dequantised_weights(architecture, quantised), ids) for ids in rows])
    expected = torch.stack([reference(plain, ids) for ids in rows])
    assert (expected - without).abs().max() > 1e-3
    found = probabilities(with_adapters(quantised), rows)
    torch.testing.assert_close(found, expected, atol=tolerance(), rtol=0)


def test_gemma2_keeps_its_caps_on_a_cpu(tmp_path: Path) -> None:
    """SDPA would drop the cap on attention logits in silence."""
    model: Any = loading.load_model(saved("gemma2", tmp_path))
    assert model.config._attn_implementation == "eager"
    assert (model.config.final_logit_softcapping, model.config.attn_logit_softcapping) == (30.0, 50.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_positions_are_never_rescaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU unsloth would, for a longer ``max_seq_length`` than the model has positions."""
    unsloth, asked = loading.import_unsloth(), []
    ordinary = unsloth.FastLanguageModel.from_pretrained

    def load(*arguments: Any, **settings: Any) -> Any:
        asked.append(settings["max_seq_length"])
        return ordinary(*arguments, **settings)

    monkeypatch.setattr(unsloth.FastLanguageModel, "from_pretrained", load)
    for length in (100, 8192):
        loading.load_model(saved("llama", tmp_path, max_seq_length=length))
    assert asked == [100, 256]


def test_embeddings_stay_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default unsloth moves them to the CPU on small GPUs, where the fast decoder can't use them."""
    unsloth, given = loading.import_unsloth(), dict[str, Any]()
    ordinary = unsloth.FastLanguageModel.from_pretrained

    def keep(*names: Any, **options: Any) -> Any:
        given.update(options)
        return ordinary(*names, **options)

    monkeypatch.setattr(unsloth.FastLanguageModel, "from_pretrained", keep)
    loading.load_model(saved("llama", tmp_path))
    assert given["offload_embedding"] is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}, "max_split_size_mb:512"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}, "None"),
    ],
)
def test_the_allocator_is_set_before_torch_is_imported(given: dict[str, str], expected: str) -> None:
    code = (
        "import sys, os, lmsys_unsloth; print('torch' in sys.modules, os.environ.get('PYTORCH_ALLOC_CONF'))"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | given, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", expected], done.stderr


def test_a_hub_out_of_reach_names_both_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    config = model_config(name="llama3", repo="unsloth/llama-3-8b-Instruct-bnb-4bit")
    with pytest.raises(
        UserError, match=r"(?s)nothing is cached.*hf download unsloth/llama-3.*model.path=DIR"
    ):
        loading.local_folder(config, weights=True)


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resident_weights_are_the_same_values(architecture: Architecture, tmp_path: Path) -> None:
    config = saved(architecture, tmp_path)
    quantised = loading.load_model(config)
    resident: Any = loading.load_model(config.model_copy(update={"resident": "bf16"}))
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in resident.modules())
    one, other = (probabilities(with_adapters(model), random_rows()) for model in (quantised, resident))
    torch.testing.assert_close(one, other, atol=tolerance(), rtol=0)


def test_weights_become_resident_only_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved("llama", tmp_path, resident="auto")
    monkeypatch.setattr(loading.memory, "free_bytes", lambda: 1_000_000)
    tight: Any = loading.load_model(config)
    assert any(isinstance(module, bnb.nn.Linear4bit) for module in tight.modules())
    monkeypatch.setattr(loading.memory, "free_bytes", lambda: 10_000_000_000)
    roomy: Any = loading.load_model(config)
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in roomy.modules())


@pytest.mark.slow
@pytest.mark.parametrize("function", ["require_available", "load_tokenizer"])
def test_a_hub_out_of_reach_is_found_out_before_slow_imports(function: str, tmp_path: Path) -> None:
    script = f"""
import sys
from factories import model_config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading
try:
    loading.{function}(model_config(name="llama3", repo="unsloth/llama-3-8b-Instruct-bnb-4bit"))
except UserError as error:
    print(sorted({{"unsloth", "transformers", "peft", "trl"}} & sys.modules.keys()), error)
"""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("[] model=llama3 needs unsloth/llama-3-8b-Instruct-bnb-4bit"), done


@pytest.mark.numeric
@pytest.mark.parametrize("resident", ["4bit", "bf16"])
def test_exchanged_adapters_give_what_a_fresh_base_model_gives(resident: str, tmp_path: Path) -> None:
    config, rows = saved("llama", tmp_path / "model", resident=resident), random_rows()
    settings = {
        "x": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        "y": LoraConfig(r=2, lora_alpha=32, target_modules=["o_proj", "up_proj"], init_lora_weights=False),
    }
    base = loading.load_model(config)
    untrained, expected = probabilities(base, rows), {}
    for name, setting in settings.items():
        get_peft_model(copy.deepcopy(base), setting).save_pretrained(tmp_path / name)
        fresh = trained_weights.load_adapters(loading.load_model(config), tmp_path / name)
        expected[name] = probabilities(fresh, rows)
    assert (expected["x"] - expected["y"]).abs().max() > 1e-3 < (expected["x"] - untrained).abs().max()
    for name in "xyx":
        adapted = trained_weights.load_adapters(base, tmp_path / name)
        assert torch.equal(probabilities(adapted, rows), expected[name])
        base = trained_weights.remove_adapters(adapted)
        assert torch.equal(probabilities(base, rows), untrained)
