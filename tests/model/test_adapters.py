"""Adapters are loaded, placed and refused as configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import model_config
from safetensors.torch import load_file, save_file
from tiny import save_tiny_llama, tolerance
from torch import Tensor, nn
from training_cases import LORA, TRAIN, adapters, with_head

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading, trained_weights


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
        trained_weights.load_adapters(loading.load_model(model_config(folder)), tmp_path / "adapter")


def test_adapters_below_the_first_layer_are_left_out(folder: Path) -> None:
    model = loading.load_model(model_config(folder))
    upper = trained_weights.make_trainable(model, LORA.model_copy(update={"first_layer": 1}), TRAIN, seed=0)
    assert all(".layers.1." in name for name in adapters(upper))
    with pytest.raises(UserError, match="the model has 2 layers, so nothing would be trained"):
        trained_weights.make_trainable(model, LORA.model_copy(update={"first_layer": 2}), TRAIN, seed=0)


def trained(model: nn.Module, target: Path, seed: int, **changes: Any) -> Path:
    """Adapters with random A and B, saved as a run saves them."""
    adapted = with_head(
        trained_weights.make_trainable(model, LORA.model_copy(update=changes), TRAIN, seed=seed)
    )
    torch.manual_seed(seed)
    for name, values in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(values, std=0.1)
    trained_weights.save_adapters(adapted, target, model_config())
    adapted.unload()
    return target


def updates(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The change of every weight by adapters."""
    adapted = trained_weights.load_adapters(model, folder)
    found = {
        name: module.get_delta_weight("default").clone()
        for name, module in adapted.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    adapted.unload()
    return found


@pytest.mark.numeric
@pytest.mark.parametrize("use_rslora", [False, True])
def test_averaged_adapters_change_weights_by_the_mean_change(
    folder: Path, tmp_path: Path, use_rslora: bool
) -> None:
    model = loading.load_model(model_config(folder))
    single = [trained(model, tmp_path / f"{k}", k, use_rslora=use_rslora) for k in range(3)]
    trained_weights.average_adapters(single, tmp_path / "average")
    each, average = [updates(model, path) for path in single], updates(model, tmp_path / "average")
    assert average.keys() == each[0].keys() and average
    for name, change in average.items():
        mean = torch.stack([own[name] for own in each]).mean(dim=0)
        assert mean.abs().max() > 0.01
        torch.testing.assert_close(change, mean, rtol=0, atol=tolerance(terms=3 * LORA.r, products=2))


def test_adapters_of_other_shapes_are_not_averaged(folder: Path, tmp_path: Path) -> None:
    model = loading.load_model(model_config(folder))
    first = trained(model, tmp_path / "first", 0)
    for name, change in {"r": {"r": 2}, "lora_alpha": {"alpha": 3.0}, "layers": {"first_layer": 1}}.items():
        other = trained(model, tmp_path / name, 1, **change)
        with pytest.raises(UserError, match=rf"(?s){name}.*eval.average=probabilities"):
            trained_weights.average_adapters([first, other], tmp_path / "average")
    weights = load_file(first / "adapter_model.safetensors")
    save_file(weights | {"head.weight": torch.zeros(3, 4)}, first / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"head\.weight; only plain LoRA"):
        trained_weights.average_adapters([first, first], tmp_path / "average")
    assert not (tmp_path / "average").exists()
