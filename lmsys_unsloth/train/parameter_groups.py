"""The optimiser: which one, and learning rates of the trained parameters as its groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.model.trained_weights import LAYER

LARGE = 10**9
"""Number of trained weights from which ``train.optimizer=auto`` chooses 8-bit states.

The 32-bit states then take 8 GB and more. Those of adapters of rank 16 take 0.3 GB for Llama 3 8B, and the
8-bit optimiser waits for the GPU after every tensor: 4.3 ms a step against 0.5 for 112 tensors (H200).
"""


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, b_ratio: float = 1.0,
    layer_decay: float = 1.0, head_learning_rate: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Group the trained parameters of ``model`` by learning rate.

    Args:
        model: model whose trained parameters require gradients.
        learning_rate: peak learning rate of weights, and of LoRA's A matrices.
        weight_decay: weight decay of all groups.
        b_ratio: learning rate of LoRA's B matrices divided by that of A (LoRA+, arXiv:2402.12354).
        layer_decay: factor from each layer to the one below it (ULMFiT, arXiv:1801.06146); the top layer has
            the full learning rate.
        head_learning_rate: learning rate of the answer head; None: ``learning_rate``.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``; the first is the one with the full rate.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = [int(found[1]) for name, _ in trained if (found := LAYER.search(name))]
    top = max(layers, default=0)
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained:
        rate, layer = learning_rate, LAYER.search(name)
        if layer is not None:
            rate *= layer_decay ** (top - int(layer[1]))
        elif head_learning_rate is not None:
            rate = head_learning_rate
        if "lora_B" in name:
            rate *= b_ratio
        by_rate.setdefault(rate, []).append(parameter)
    rates = sorted(by_rate, key=lambda rate: (rate != learning_rate, -rate))
    return [{"params": by_rate[rate], "lr": rate, "weight_decay": weight_decay} for rate in rates]


def optimizer_name(config: TrainConfig, trained: int) -> str:
    """Return the name of the optimiser in transformers for a number of trained weights."""
    if not torch.cuda.is_available():
        return "adamw_torch_fused"  # 8-bit states need a GPU
    if config.optimizer != "auto":
        return config.optimizer
    return "adamw_8bit" if trained >= LARGE else "adamw_torch_fused"
