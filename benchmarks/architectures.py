"""Llama 3 8B and Gemma 2 9B: their shapes, random weights and row lengths, and the operations they need."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "llama3": dict(
        architecture="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5,
        max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    ),
    "gemma2": dict(
        architecture="gemma2", vocab_size=256000, hidden_size=3584, intermediate_size=14336,
        num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
        query_pre_attn_scalar=256, sliding_window=4096, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}  # fmt: skip
TINY = dict(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip


def lengths(options: argparse.Namespace) -> list[int]:
    """Draw row lengths distributed as in LMSYS's data, in tokens."""
    import numpy as np

    drawn = np.random.default_rng(0).lognormal(6.75, 0.7, options.rows).clip(100, 3072)
    return [max(4, int(n) // (40 if options.tiny else 1)) for n in drawn]


def shape(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a model's transformers configuration."""
    settings = {**SHAPES[name], **(TINY if options.tiny else {})}
    settings.pop("architecture")
    return settings


def write_random_model(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Write a folder in Hugging Face format with random weights, in shards, without building the model."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.device("meta"):
        model: Any
        if SHAPES[name]["architecture"] == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape(name, options), **special))
        else:
            model = Gemma2ForCausalLM(Gemma2Config(**shape(name, options), **special))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder.mkdir(parents=True)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    names = [n for n, _ in model.named_parameters()]
    for number, (key, parameter) in enumerate(model.named_parameters()):
        scale = 0.02 if parameter.dim() > 1 else 0.0
        value = torch.randn(parameter.shape, device=device, dtype=torch.bfloat16) * scale
        if parameter.dim() == 1 and SHAPES[name]["architecture"] == "llama":
            value += 1  # norm weights; Gemma's are added to one
        shard[key] = value.cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > 4e9 or number == len(names) - 1:
            file = f"model-{len(set(index.values())):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)
    words = {f"w{n}": n for n in range(3, shape(name, options)["vocab_size"])}
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, **words}, unk_token="<pad>"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def flops_per_token(name: str, options: argparse.Namespace, rank: int, *, training: bool) -> float:
    """Count the necessary operations per token: frozen matrices, adapters and attention.

    Every position passes through every layer; the LM head and recomputation are not counted.
    """
    s = shape(name, options)
    width, inner, layers = s["hidden_size"], s["intermediate_size"], s["num_hidden_layers"]
    q, kv = s["num_attention_heads"] * s["head_dim"], s["num_key_value_heads"] * s["head_dim"]
    matrices = [
        (width, q),
        (width, kv),
        (width, kv),
        (q, width),
        (width, inner),
        (width, inner),
        (inner, width),
    ]
    frozen = sum(a * b for a, b in matrices)
    adapters = sum(rank * (a + b) for a, b in matrices)
    each = lengths(options)
    attended = sum(n * n for n in each) / sum(each) / 2  # average number of positions that a token attends to
    attention = 2 * 2 * attended * q
    factor = (2, 3, 3) if training else (1, 1, 1)  # passes: forward, and gradients of inputs and of weights
    return float(layers * (2 * frozen * factor[0] + 2 * adapters * factor[1] + attention * factor[2]))
