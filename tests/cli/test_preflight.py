"""The checks before a run find what would otherwise give wrong numbers without an error."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import config
from safetensors.numpy import save_file

from lmsys_unsloth.cli import preflight
from lmsys_unsloth.cli.preflight import Check, print_checks, run_checks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import smollm2
from lmsys_unsloth.model.memory import projection_shapes
from lmsys_unsloth.prompting.encoding import RowEncoder

GEMMA2 = {
    "model_type": "gemma2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 49_152,
    "max_position_embeddings": 8192, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA = GEMMA2 | {"model_type": "llama", "tie_word_embeddings": False, "final_logit_softcapping": None}
LLAMA |= {"attn_logit_softcapping": None}
OPT = {"model_type": "opt", "vocab_size": 50_272, "max_position_embeddings": 8192}


def weights(model: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Tensors of the embeddings and of all projections, of the shapes that a configuration says."""
    found = {"model.embed_tokens.weight": np.zeros((model["vocab_size"], model["hidden_size"]), np.float16)}
    for layer in range(model["num_hidden_layers"]):
        for name, shape in projection_shapes(model).items():
            block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            found[f"model.layers.{layer}.{block}.{name}.weight"] = np.zeros(shape[::-1], np.float16)
    return found | more


def results(
    folder: Path, model: dict[str, Any], tensors: dict[str, Any], *overrides: str
) -> dict[str, Check]:
    (folder / "config.json").write_text(json.dumps(model))
    save_file(tensors, folder / "model.safetensors")
    settings = config("prompt=v2", *overrides)
    return {check.name: check for check in run_checks(settings, encoder(), folder)}


@functools.cache
def encoder() -> RowEncoder:
    return RowEncoder(smollm2.tokenizer(), config("prompt=v2").prompt)


def test_a_consistent_model_passes_all_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = results(tmp_path, GEMMA2, weights(GEMMA2), "model=gemma2")
    assert {check.verdict for name, check in table.items() if name not in {"versions", "memory"}} == {"ok"}
    assert {
        "answers",
        "BOS",
        "family",
        "tensors",
        "adapted layers",
        "LM head",
        "soft caps",
        "dtype",
        "memory",
        "versions",
        "attention",
    } <= table.keys()
    print_checks(list(table.values()))
    printed = capsys.readouterr().out
    assert (
        "' A' 330 ĠA, ' B' 389 ĠB, ' Tie' 47832 ĠTie" in printed and "final 30.0, attention 50.0" in printed
    )


def test_an_lm_head_that_is_neither_tied_nor_stored_is_an_error(tmp_path: Path) -> None:
    table = results(tmp_path, LLAMA, weights(LLAMA), "model=llama3")
    assert table["LM head"].verdict == "error"
    with pytest.raises(
        UserError, match="LM head = separate, but not among the weights: it would be initialised at random"
    ):
        print_checks(list(table.values()))
    stored = weights(LLAMA, **{"lm_head.weight": np.zeros(1)})
    assert results(tmp_path, LLAMA, stored, "model=llama3")["LM head"].verdict == "ok"


def test_trained_heads_need_answers_of_one_token(tmp_path: Path) -> None:
    prompt = config(
        "prompt=v2", "prompt.multi_token_answers=true", "prompt.answers.tie=' both are equal'"
    ).prompt
    made, settings = RowEncoder(smollm2.tokenizer(), prompt), config("prompt=v2", "head=linear")
    check = preflight._head(settings, made)
    assert (check.verdict, check.value) == ("error", "linear, 3 answers of 1, 1, 3 tokens")
    assert "use head=lm or shorter answers" in check.remedy
    assert preflight._head(config("prompt=v2"), made).verdict == "ok"
    assert preflight._head(settings, encoder()) == Check("head", "linear, 3 answers")


def test_a_loss_on_the_eos_token_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("prompt=v2", "train.loss=answer_eos", "head.offset=none")
    assert preflight._head(settings, encoder()).verdict == "ok"
    monkeypatch.setattr(encoder().vocabulary, "eos_id", None)
    check = preflight._head(settings, encoder())
    assert check.verdict == "error" and "use train.loss=vocabulary" in check.remedy


@pytest.mark.parametrize("cap", ["final_logit_softcapping", "attn_logit_softcapping"])
def test_a_missing_soft_cap_is_an_error(tmp_path: Path, cap: str) -> None:
    table = results(tmp_path, GEMMA2 | {cap: None}, weights(GEMMA2), "model=gemma2")
    with pytest.raises(
        UserError, match=r"restore final_logit_softcapping and attn_logit_softcapping .*Gemma 2: 30 and 50"
    ):
        print_checks(list(table.values()))


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"max_position_embeddings": 2048}, "context", "set prompt.max_tokens=2048"),
        ({"vocab_size": 40_000}, "vocabulary", "tokenizer and weights belong to different models"),
    ],
)
def test_contradictory_settings_are_errors(
    tmp_path: Path, change: dict[str, Any], name: str, message: str
) -> None:
    table = results(tmp_path, GEMMA2 | change, weights(GEMMA2), "model=gemma2")
    assert table[name].verdict == "error" and message in table[name].remedy


def test_rows_with_their_answers_must_fit_the_models_window(tmp_path: Path) -> None:
    window = GEMMA2 | {"max_position_embeddings": 3072}
    tensors = weights(window)
    fits = ["model=gemma2", "model.max_seq_length=3072"]  # prompt.max_tokens = 3072
    assert results(tmp_path, window, tensors, *fits)["context"].verdict == "ok"
    with_eos = results(tmp_path, window, tensors, *fits, "train.loss=answer_eos", "head.offset=none")[
        "context"
    ]
    assert with_eos.value == "3,073 of 3,072 tokens" and "set prompt.max_tokens=3071" in with_eos.remedy


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"num_hidden_layers": 3}, "2 layers, config.json says 3"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight has [32, 64], config.json says [64, 64]"),
        ({"hidden_size": 32}, "model.embed_tokens.weight has [49152, 64], config.json says [49152, 32]"),
    ],
)
def test_weights_of_another_shape_than_the_configuration_are_an_error(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    check = results(tmp_path, LLAMA | change, weights(LLAMA))["tensors"]
    assert check.verdict == "error" and difference in check.value
    assert "weights and config.json belong to different models" in check.remedy


def test_packed_4bit_weights_are_compared_by_their_number(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    packed = weights(LLAMA, **{name: np.zeros((64 * 64 // 2, 1), np.uint8)})
    assert results(tmp_path, LLAMA, packed)["tensors"].verdict == "ok"
    in_halves = {name: np.zeros((64 * 64 // 4, 1), np.float16)}
    assert results(tmp_path, LLAMA, packed | in_halves)["tensors"].verdict == "ok"
    check = results(tmp_path, LLAMA, packed | {name: np.zeros((64, 1), np.uint8)})["tensors"]
    assert f"{name} has 128 4-bit weights, config.json says [64, 64]" in check.value


def test_incomplete_and_damaged_weights_are_named(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors; download the rest"):
        results(tmp_path, LLAMA, weights(LLAMA))
    (tmp_path / "model-2.safetensors").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"model-2\.safetensors: can't be read"):
        results(tmp_path, LLAMA, weights(LLAMA))


def test_a_tokenizer_with_more_entries_than_embeddings_is_an_error(tmp_path: Path) -> None:
    small = LLAMA | {"vocab_size": 49_000}
    check = results(tmp_path, small, weights(small))["vocabulary"]
    assert check.verdict == "error" and check.value == "49,152 entries, 49,000 embeddings"


def test_a_tokenizer_with_much_fewer_entries_is_a_warning(tmp_path: Path) -> None:
    large = LLAMA | {"vocab_size": 128_256}
    check = results(tmp_path, large, weights(large))["vocabulary"]
    assert check.verdict == "warning" and "that of another model?" in check.remedy


def test_layers_that_the_model_does_not_have_can_not_be_trained(tmp_path: Path) -> None:
    check = results(tmp_path, LLAMA, weights(LLAMA), "lora.target_modules=[q_proj,c_attn]")["adapted layers"]
    assert check.verdict == "error"
    assert "has no linear layers c_attn; set lora.target_modules=[down_proj,gate_proj,k_proj" in check.remedy


def test_models_of_other_families_are_checked_as_far_as_they_are_known(tmp_path: Path) -> None:
    stored = {f"decoder.layers.0.{name}.weight": np.zeros((4, 4)) for name in ("fc1", "q_proj")}
    stored |= {"decoder.layers.0.fc1.bias": np.zeros(4), "decoder.embed_tokens.weight": np.zeros((4, 4))}
    table = results(tmp_path, OPT, stored, "lora.target_modules=[q_proj,fc1]")
    assert {check.verdict for check in table.values() if check.name != "versions"} == {"ok"}
    assert table["family"].value == "opt, computed by the model's own forward pass"
    assert "padded batches (no fast decoder)" in table["attention"].value
    check = results(tmp_path, OPT, stored)["adapted layers"]
    assert check.verdict == "error" and "set lora.target_modules=[fc1,q_proj]" in check.remedy


def test_adapters_are_checked_only_where_there_is_a_training(tmp_path: Path) -> None:
    results(tmp_path, OPT, {"decoder.layers.0.fc1.weight": np.zeros((4, 4))})
    checks = run_checks(config("prompt=v2"), encoder(), tmp_path, training=False)
    assert "adapted layers" not in {check.name for check in checks}


def test_too_little_memory_is_a_warning(tmp_path: Path) -> None:
    huge = GEMMA2 | {"num_hidden_layers": 4000, "hidden_size": 16384, "intermediate_size": 65536}
    table = results(tmp_path, huge, weights(GEMMA2), "model=gemma2")
    assert table["memory"].verdict == "warning" and "train.tokens_per_micro_batch" in table["memory"].remedy


@pytest.mark.parametrize(
    ("capability", "words", "verdict"),
    [
        (None, [], "warning"), ((8, 0), [], "error"), ((8, 9), [], "ok"), ((9, 0), [], "ok"),
        ((9, 0), ["train.fast=false"], "warning"),
    ],
)  # fmt: skip
def test_fp8_needs_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, words: list[str], verdict: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    check = preflight._fp8(config("model.resident=fp8", *words))
    assert check.verdict == verdict
    assert (verdict != "error") or "needs 8.9 or more" in check.remedy


INSTALLED = {"torch": "2.13.0+cpu", "transformers": "5.17.0"}


def versions(monkeypatch: pytest.MonkeyPatch, pins: dict[str, str], installed: dict[str, str]) -> Check:
    """Check of the versions with these pins and installed packages."""
    monkeypatch.setattr(preflight, "pinned_versions", lambda *files: pins)
    monkeypatch.setattr(preflight, "installed_versions", lambda packages: installed)
    return preflight._versions()


@pytest.mark.parametrize(
    ("swap", "processes", "verdict"), [("none", 4, "ok"), ("both", 2, "ok"), ("both", 3, "error")]
)
def test_every_process_needs_a_row_in_a_step(swap: str, processes: int, verdict: str) -> None:
    settings = config("train.rows_per_step=4", f"data.swap={swap}")
    assert preflight._processes(settings, processes).verdict == verdict


def test_versions_are_compared_with_the_pinned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {"torch": "2.13.0", "transformers": "5.17.0"}
    assert versions(monkeypatch, pins, INSTALLED) == Check("versions", "as pinned")
    check = versions(monkeypatch, pins, INSTALLED | {"transformers": "5.0.0"})
    assert check.verdict == "warning" and check.value == "transformers 5.0.0 (pinned: 5.17.0)"
    check = versions(monkeypatch, {"torch": "2.13.0"}, INSTALLED)
    assert check == Check("versions", "as pinned; not pinned: transformers 5.17.0")
