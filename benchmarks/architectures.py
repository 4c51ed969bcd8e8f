"""Llama 3 8B and Gemma 2 9B: their shapes, random weights and row lengths, and the operations they need."""

from __future__ import annotations

import argparse
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
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


POOL = 2**25
"""Number of different random weights of a model."""


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
    """Write a folder in Hugging Face format with random weights, unless it is there already and complete.

    Every tensor is a part of the same random numbers, from a random place on: drawing 16 GB of numbers, or
    copying them from a GPU, takes longer than writing them.
    """
    settings = shape(name, options)
    made_of = folder / "shape.json"
    if made_of.is_file() and json.loads(made_of.read_text()) == settings:
        return
    import torch
    from tokenizers import Tokenizer, models
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    from lmsys_unsloth.core.files import replacing_folder, write_json

    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.device("meta"):
        model: Any
        if SHAPES[name]["architecture"] == "llama":
            model = LlamaForCausalLM(LlamaConfig(**settings, **special))
        else:
            model = Gemma2ForCausalLM(Gemma2Config(**settings, **special))
    with replacing_folder(folder) as work:
        index = _write_shards(
            dict(model.named_parameters()), work, ones=not isinstance(model, Gemma2ForCausalLM)
        )
        write_json(work / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
        model.config.architectures = [type(model).__name__]
        model.config.dtype = torch.bfloat16
        model.config.save_pretrained(work)
        words = {f"w{n}": n for n in range(3, settings["vocab_size"])}
        backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, **words}, unk_token="<pad>"))
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        ).save_pretrained(work)
        write_json(work / made_of.name, settings)


def _write_shards(parameters: dict[str, Any], folder: Path, *, ones: bool) -> dict[str, str]:
    """Write safetensors files of about 1 GB each at the same time, and return the file of each tensor.

    Norm weights are one; without ``ones`` zero, as Gemma's are added to one.
    """
    shards: list[list[str]] = [[]]
    for key in parameters:
        if shards[-1] and sum(2 * parameters[each].numel() for each in shards[-1]) > 1e9:
            shards.append([])
        shards[-1].append(key)
    pool = _random_bfloat16(POOL)
    files = {f"model-{number:05d}.safetensors": keys for number, keys in enumerate(shards)}
    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(
                lambda file: _write_shard({k: parameters[k] for k in files[file]}, folder / file, pool, ones),
                files,
            )
        )
    return {key: file for file, keys in files.items() for key in keys}


def _random_bfloat16(count: int) -> Any:
    """Return normal numbers of standard deviation 0.02 as the bits of bfloat16, uint16 ``[count]``."""
    import torch

    drawn = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.02
    return drawn.bfloat16().view(torch.uint16).numpy()


def _write_shard(parameters: dict[str, Any], path: Path, pool: Any, ones: bool) -> None:
    """Write one file: the length of the header, the header, and the tensors' bytes one after the other."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key, parameter in parameters.items():
        end = position + 2 * parameter.numel()
        header[key] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    random = np.random.default_rng(zlib.crc32(path.name.encode()))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for parameter in parameters.values():
            if parameter.dim() == 1:
                bits = 0x3F80 if ones else 0  # 1.0 in bfloat16
                file.write(np.full(parameter.numel(), bits, np.uint16).tobytes())
                continue
            left = parameter.numel()
            while left:
                start = int(random.integers(len(pool) // 2))
                part = pool[start : start + left]
                file.write(part.data)
                left -= len(part)


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
