"""Tiny random models (float32, eager attention) of every family, of transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch
from tiny import VOCABULARY
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LOCAL_AND_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
ALTERNATING = ["sliding_attention", "full_attention"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "Llama 3.1": ("llama", {"rope_parameters": SCALED}),
    "Llama 3.2, SmolLM2": ("llama", {"rope_parameters": SCALED, "tie_word_embeddings": True}),
    "Gemma 2": (
        "gemma2",
        {
            "sliding_window": 8, "query_pre_attn_scalar": 32, "tie_word_embeddings": True,
            "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
        },
    ),
    "Gemma 3": (
        "gemma3_text",
        {
            "sliding_window": 8, "query_pre_attn_scalar": 32, "tie_word_embeddings": True,
            "layer_types": 2 * ALTERNATING, "rope_parameters": LOCAL_AND_GLOBAL,
        },
    ),
    "Qwen 2.5": ("qwen2", {}),
    "Qwen 2.5, tied, YaRN": ("qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "Qwen 3": ("qwen3", {"head_dim": 24}),
    "Mistral 7B": ("mistral", {"sliding_window": 8}),
    "Mistral Nemo": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "Phi-4": ("phi3", {"sliding_window": None}),
    "Phi-4 mini": ("phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "OLMo 2": ("olmo2", {}),
}  # fmt: skip
"""Settings of a model by the name that people know it by."""


def settings(variant: str, **changes: Any) -> PretrainedConfig:
    """Return the configuration of a tiny model."""
    family, own = VARIANTS[variant]
    common: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    if family in ("gemma2", "gemma3_text", "mistral"):  # others divide the width by the number of heads
        common["head_dim"] = 16
    return CONFIG_MAPPING[family](**{**common, **own, **changes})


def family_model(variant: str, **changes: Any) -> nn.Module:
    """Return a random model; biases and the weights of norms are random too."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(settings(variant, **changes), attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.25, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.float().eval()
