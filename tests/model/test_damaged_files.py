"""Damaged or unsuitable model files are named with what to do about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import config

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading
from lmsys_unsloth.model.families.model_folder import model_settings
from lmsys_unsloth.model.families.other import check_own_logits
from lmsys_unsloth.model.trained_weights import read_weights


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), ("{", "can't be read"), ("[]", "not a JSON object")],
    ids=["missing", "damaged", "list"],
)
def test_a_damaged_configuration_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=f"{message}.*download the model again"):
        model_settings(tmp_path)


@pytest.mark.parametrize("content", [None, b"not tensors"], ids=["missing", "damaged"])
def test_damaged_adapters_are_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="restore it or start the training anew"):
        read_weights(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.gguf", "GGUF"), ("pytorch_model.bin", "can carry code and are not read")],
    ids=["gguf", "pickle"],
)
def test_weights_in_other_files_are_not_read(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    settings = config().model.model_copy(update={"path": str(tmp_path)})
    with pytest.raises(UserError, match=message):
        loading.local_folder(settings, weights=True)


def test_a_model_without_lm_head_is_refused(tmp_path: Path) -> None:
    class Encoder(torch.nn.Module):
        config: Any = type("Config", (), {"model_type": "bert"})()

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(UserError, match="model_type = bert: has no LM head"):
        check_own_logits(Encoder(), tmp_path)
