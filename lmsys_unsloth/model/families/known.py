"""The families that the fast decoder computes, each checked against transformers' own class in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmsys_unsloth.model.families.family import Family

FAMILIES: dict[str, Family] = {}
"""All families by ``model_type``."""


def register(family: Family) -> Family:
    """Add a family."""
    FAMILIES[family.name] = family
    return family


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a model's ``config.json``; None if the fast decoder does not know it."""
    return FAMILIES.get(str(config.get("model_type")))


LLAMA = register(Family("llama"))
"""Llama 3, 3.1, 3.2, SmolLM2, and models converted to this architecture (unsloth's Phi-4)."""

GEMMA2 = register(
    Family(
        "gemma2", norm_weight="one_plus", after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm", after_mlp="post_feedforward_layernorm",
        scaled_embeddings=True, caps=True, tied=True, overflows_in_float16=True,
    )
)  # fmt: skip
"""Gemma 2: capped logits, and a sliding window in every other layer (arXiv:2408.00118)."""

GEMMA3 = register(
    Family(
        "gemma3_text", norm_weight="one_plus", after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm", after_mlp="post_feedforward_layernorm", qk_norm="head",
        scaled_embeddings=True, tied=True, overflows_in_float16=True, kernels=False,
    )
)  # fmt: skip
"""Gemma 3, text only: five of six layers have a sliding window and a rotary base of their own
(arXiv:2503.19786)."""

QWEN2 = register(Family("qwen2"))
"""Qwen 2 and 2.5: biases of queries, keys and values (arXiv:2412.15115)."""

QWEN3 = register(Family("qwen3", qk_norm="head"))
"""Qwen 3, dense: norms of queries and keys (arXiv:2505.09388)."""

MISTRAL = register(Family("mistral", window="all_layers"))
"""Mistral 7B and Nemo; only the first release of 7B has a sliding window (arXiv:2310.06825)."""

PHI3 = register(
    Family("phi3", qkv=("qkv_proj",), gate_up=("gate_up_proj",), window="all_layers", kernels=False)
)
"""Phi-3 and Phi-4: fused projections (arXiv:2412.08905)."""

OLMO2 = register(
    Family(
        "olmo2", norm_weight="in_float32", before_attention=None, after_attention="post_attention_layernorm",
        before_mlp=None, after_mlp="post_feedforward_layernorm", qk_norm="all_heads", kernels=False,
    )
)  # fmt: skip
"""OLMo 2: norms after attention and MLP, and of all queries and keys together (arXiv:2501.00656)."""
