"""The opening table stops what would silently give wrong numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import composed
from safetensors.numpy import save_file

from lmsys_unsloth.cli import preflight
from lmsys_unsloth.cli.preflight import Check, checks, print_checks
from lmsys_unsloth.config.parsing import Config, parse_config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import memory, smollm2
from lmsys_unsloth.prompting.encoding import RowEncoder

GEMMA2 = {
    "model_type": "gemma2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256_000,
    "max_position_embeddings": 8192, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA = GEMMA2 | {"model_type": "llama", "tie_word_embeddings": False, "final_logit_softcapping": None}


def found(folder: Path, settings: dict[str, Any], tensors: list[str], *overrides: str) -> dict[str, Check]:
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({name: np.zeros(1, dtype=np.float32) for name in tensors}, folder / "model.safetensors")
    config: Config = parse_config(composed("prompt=v2", *overrides))
    encoder = RowEncoder(smollm2.tokenizer(), config.prompt)
    return {check.name: check for check in checks(config, encoder, folder)}


def test_a_sound_model_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = found(tmp_path, GEMMA2, ["model.embed_tokens.weight"], "model=gemma2")
    assert {check.verdict for name, check in table.items() if name not in {"versions", "memory"}} == {"ok"}
    assert {
        "answers",
        "BOS",
        "LM head",
        "soft caps",
        "dtype",
        "memory",
        "versions",
        "attention",
    } <= table.keys()
    print_checks(list(table.values()))
    printed = capsys.readouterr().out
    assert "' A' 330, ' B' 389, ' Tie' 47832" in printed and "final 30.0, attention 50.0" in printed


def test_a_head_that_is_neither_tied_nor_stored_stops_the_run(tmp_path: Path) -> None:
    table = found(tmp_path, LLAMA, ["model.embed_tokens.weight"], "model=llama3")
    assert table["LM head"].verdict == "stop"
    with pytest.raises(UserError, match="LM head = own, but not among the weights: it would be random"):
        print_checks(list(table.values()))
    assert found(tmp_path, LLAMA, ["lm_head.weight"], "model=llama3")["LM head"].verdict == "ok"


@pytest.mark.parametrize("cap", ["final_logit_softcapping", "attn_logit_softcapping"])
def test_a_missing_cap_stops_the_run(tmp_path: Path, cap: str) -> None:
    table = found(tmp_path, GEMMA2 | {cap: None}, ["model.embed_tokens.weight"], "model=gemma2")
    with pytest.raises(UserError, match="Gemma 2 was trained with 30 and 50"):
        print_checks(list(table.values()))


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"model_type": "mistral"}, "architecture", "model.architecture says gemma2"),
        ({"max_position_embeddings": 2048}, "context", "set prompt.max_tokens=2048"),
        ({"vocab_size": 40_000}, "vocabulary", "tokenizer and weights belong to different models"),
    ],
)
def test_other_contradictions_stop_the_run(
    tmp_path: Path, change: dict[str, Any], name: str, message: str
) -> None:
    table = found(tmp_path, GEMMA2 | change, ["model.embed_tokens.weight"], "model=gemma2")
    assert table[name].verdict == "stop" and message in table[name].remedy


def test_too_little_memory_is_pointed_out(tmp_path: Path) -> None:
    huge = GEMMA2 | {"num_hidden_layers": 4000, "hidden_size": 16384, "intermediate_size": 65536}
    table = found(tmp_path, huge, ["model.embed_tokens.weight"], "model=gemma2")
    assert table["memory"].verdict == "look" and "train.tokens_per_micro_batch" in table["memory"].remedy


@pytest.mark.parametrize(
    ("model", "shape", "counted"),
    [
        ("llama3", dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, head_dim=128), 3.543),
        ("gemma2", dict(hidden_size=3584, num_hidden_layers=42, num_attention_heads=16, head_dim=256), 5.253),
    ],
)
def test_activations_on_a_gpu(
    model: str, shape: dict[str, int], counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: MB a token that the fast decoder keeps at full size, traced with unsloth's kernels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "free_bytes", lambda: 70e9)
    config = parse_config(composed(f"model={model}", "train.tokens_per_micro_batch=8192"))
    common = dict(intermediate_size=14336, num_key_value_heads=8, vocab_size=128_256)
    value = preflight._memory(config, {**shape, **common}).value
    found = float(value.removesuffix(")").rpartition(" ")[2]) * 1000 / 8192
    assert found == pytest.approx(counted, rel=0.01), value
