"""Each trained parameter gets the learning rate of its kind and layer."""

from __future__ import annotations

import pytest
from tiny import tiny_model, with_adapters
from torch import nn

from lmsys_unsloth.train.parameter_groups import parameter_groups


def rates(model: nn.Module, **settings: float) -> dict[str, float]:
    """Learning rate by parameter name."""
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.1, **settings)
    assert groups[0]["lr"] == 1e-3, "the logged learning rate is the first group's"
    assert all(group["weight_decay"] == 0.1 for group in groups)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate)
    return {name: rate[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_all_trained_parameters_have_one_rate_by_default() -> None:
    found = rates(with_adapters(tiny_model("llama")))
    assert len(found) == 4 * 7 * 2 and set(found.values()) == {1e-3}


def test_lora_b_has_its_own_rate() -> None:
    for name, rate in rates(with_adapters(tiny_model("llama")), b_ratio=16.0).items():
        assert rate == (16e-3 if "lora_B" in name else 1e-3), name


def test_the_rate_decays_from_the_top_layer_down() -> None:
    for name, rate in rates(with_adapters(tiny_model("llama")), layer_decay=0.5).items():
        layer = int(name.split(".layers.")[1].split(".")[0])
        assert rate == pytest.approx(1e-3 * 0.5 ** (3 - layer)), name


def test_the_head_has_its_own_rate() -> None:
    model = with_adapters(tiny_model("llama"))
    model.add_module("answer_head", nn.Linear(4, 3))
    found = rates(model, head_learning_rate=1e-5, layer_decay=0.5, b_ratio=2.0)
    assert {rate for name, rate in found.items() if "answer_head" in name} == {1e-5}
