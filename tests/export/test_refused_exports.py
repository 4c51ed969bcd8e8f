"""Runs that a format can't hold, and folders that are no source, are named before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.export import formats, gguf_writer
from lmsys_unsloth.export.checking import validation_rows
from lmsys_unsloth.export.formats import FORMATS, require_possible
from lmsys_unsloth.kit.kit import write_kit

GEMMA = {
    "model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "num_attention_heads": 16,
    "head_dim": 256, "query_pre_attn_scalar": 256,
}  # fmt: skip


def test_formats_of_one_token_refuse_longer_answers() -> None:
    answers = [(1, 2), (3,), (4,)]
    with pytest.raises(UserError, match=r"are the tokens \[\[1, 2\], \[3\], \[4\]\].\n  Use format=merged16"):
        require_possible(FORMATS["classifier"], config(), answers)
    require_possible(FORMATS["merged16"], config(), answers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "phi3"}, r"not phi3.\n  Export format=merged16, and convert it with llama.cpp's"),
        ({"query_pre_attn_scalar": 224}, r"1 / sqrt\(256\), but query_pre_attn_scalar = 224"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = yarn is not written"),
    ],
    ids=["architecture", "scale", "rotation"],
)
def test_models_that_llama_cpp_computes_otherwise_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        gguf_writer.write({}, GEMMA | changes, tmp_path, "bf16")


def test_a_tensor_that_llama_cpp_does_not_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_add_settings", "_add_vocabulary"):
        monkeypatch.setattr(gguf_writer, name, lambda *_: None)
    settings = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 8}
    with pytest.raises(UserError, match=r"llama.cpp has no tensor for model.adapter.weight"):
        gguf_writer.write({"model.adapter.weight": torch.zeros(2, 2)}, settings, tmp_path, "bf16")


def test_changed_data_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "data.json", {"fingerprint": "another"})
    with pytest.raises(UserError, match=r"has changed since .*\n  Restore it, or leave the comparison out"):
        validation_rows(Run(tmp_path), config("data.rows=20"), 4)


def test_a_kit_is_made_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="an export folder predicts by itself"):
        write_kit(tmp_path, tmp_path / "kit", None, base=False)
    with pytest.raises(UserError, match="exists and is no kit"):
        write_kit(tmp_path, tmp_path, None, base=False)


def test_a_class_without_a_classifier_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = type("OddForCausalLM", (), {"config": None})()
    for name in ("take_head", "plain_config", "causal_lm"):
        monkeypatch.setattr(formats, name, lambda given: given)
    with pytest.raises(UserError, match="has no OddForSequenceClassification; use format=merged16"):
        FORMATS["classifier"].write(model, tmp_path, "bf16")
