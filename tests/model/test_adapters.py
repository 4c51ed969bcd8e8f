"""Adapters are loaded, placed and refused as configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import model_config
from safetensors.torch import load_file, save_file
from tiny import save_tiny_llama, tiny_model, tolerance, with_adapters
from torch import Tensor, nn
from training_cases import LORA, TRAIN, adapters, with_head

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.model.layers.linear import linears


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


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], ["k_proj"]], ids=len)
def test_layers_with_lora_computed_together_have_the_results_and_gradients_of_peft(
    dtype: torch.dtype, targets: list[str]
) -> None:
    """Of PEFT in float32; ``k_proj`` alone leaves its neighbours without adapters."""
    model = with_adapters(tiny_model("llama"), r=4, lora_alpha=12, target_modules=targets)
    attention = model.get_base_model().model.layers[0].self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    trained = [p for p in attention.parameters() if p.requires_grad]
    torch.manual_seed(0)
    for parameter in trained:
        nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(1, 7, attention.q_proj.in_features).to(dtype)
    ups = [torch.randn(1, 7, projection.out_features).to(dtype) for projection in projections]

    def results(compute: Callable[[Tensor], tuple[Tensor, ...]], dtype: torch.dtype) -> list[Tensor]:
        for projection in projections:
            getattr(projection, "base_layer", projection).to(dtype)
        x = inputs.detach().to(dtype).requires_grad_()
        outs = compute(x)
        gradients = torch.autograd.grad(outs, [x, *trained], [up.to(dtype) for up in ups])
        return [out.detach().float() for out in (*outs, *gradients)]

    found = results(lambda x: linears(projections, x), dtype)
    expected = results(lambda x: tuple(projection(x) for projection in projections), torch.float32)
    for one, other in zip(found, expected, strict=True):
        rounding = tolerance(dtype, terms=inputs.shape[-1] if dtype == torch.float32 else 1, products=2)
        assert (one - other).norm() <= rounding * other.norm()
