"""Adapters are loaded, placed and refused as configured."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import model_config
from tiny import save_tiny_llama
from training_cases import LORA, TRAIN, adapters

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def test_weights_in_a_format_that_can_carry_code_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"holds no \*.safetensors file"):
        loading.load_model(model_config(tmp_path))


def test_an_unfinished_run_has_no_adapters(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.py resume="):
        loading.load_adapters(loading.load_model(model_config(folder)), tmp_path / "adapter")


def test_adapters_below_the_first_layer_are_left_out(folder: Path) -> None:
    model = loading.load_model(model_config(folder))
    upper = loading.make_trainable(model, LORA.model_copy(update={"first_layer": 1}), TRAIN, seed=0)
    assert all(".layers.1." in name for name in adapters(upper))
    with pytest.raises(UserError, match="the model has 2 layers, so nothing would be trained"):
        loading.make_trainable(model, LORA.model_copy(update={"first_layer": 2}), TRAIN, seed=0)
