"""``format=fp8``: linear layers in 8-bit floating point, in the layout of compressed-tensors.

Weights are E4M3 numbers with one scale for each output channel, ``weight ≈ float8 * weight_scale``;
activations stay as they are until a kernel quantises them token by token, as vLLM does ("FP8_DYNAMIC").
Embeddings, norms and the LM head are not quantised. Layout: compressed-tensors 0.9, format
``float-quantized``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmsys_unsloth.model.decoder import causal_lm

LARGEST = torch.finfo(torch.float8_e4m3fn).max
SCALE = ".weight_scale"


def quantise(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Quantise the linear layers of a merged model.

    Args:
        model: gives the names of the linear layers.
        state: weights by name.

    Returns:
        Tensors of the checkpoint, and its ``quantization_config``.
    """
    linear = {
        f"{name}.weight"
        for name, module in causal_lm(model).named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    tensors: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name not in linear:
            tensors[name] = weight
            continue
        scale = (weight.float().abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(1e-12)
        tensors[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        tensors[name.removesuffix(".weight") + SCALE] = scale.to(weight.dtype)
    return tensors, SETTINGS


def dequantise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name in the dtype of their scales, from the tensors of a checkpoint."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        scale = tensors.get(name.removesuffix(".weight") + SCALE)
        plain[name] = tensor if scale is None else (tensor.float() * scale.float()).to(scale.dtype)
    return plain


_NUMBERS: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
SETTINGS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "global_compression_ratio": None,
    "kv_cache_scheme": None,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_NUMBERS, "strategy": "channel", "dynamic": False},
            "input_activations": {**_NUMBERS, "strategy": "token", "dynamic": True},
            "output_activations": None,
        }
    },
}
"""``quantization_config`` of the checkpoint's ``config.json``."""
