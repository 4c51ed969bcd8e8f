"""Memory that a run uses, what its weights and activations will need, and returning what has been freed."""

from __future__ import annotations

import ctypes
import functools
import math
import resource
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil
import torch

from lmsys_unsloth.config.schema import LoraConfig, ModelConfig, TrainConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.model.attention import has_flash_attention
from lmsys_unsloth.model.families import known
from lmsys_unsloth.model.families.family import Family

NF4_BYTES = 0.5 + 4 / 64
"""Bytes per NF4 weight: 4 bits, and a float32 scale per block of 64 weights (QLoRA, arXiv:2305.14314)."""

FP8_BYTES = 2
"""Bytes per weight that products in fp8 add to the loaded weights in a training, one for each pass."""

RESIDENT_SHARE = 0.25
"""Fraction of free memory that dequantised weights may use on top of their 4-bit form; activations need the
rest."""

FULL_BYTES = 16
"""Bytes per fully trained weight on top of the loaded one: float32 copy, gradient and two AdamW moments."""

WORKSPACE = 2
"""Temporary memory of a forward and backward pass, in layers' worth of kept activations."""


def peak_gb() -> float:
    """Return the peak memory of the GPU, or of this process where there is none, in 10⁹ bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def free_bytes() -> int:
    """Return the memory that tensors can still get, of the GPU, or of this machine where there is none.

    Ranks on one CPU share its memory.
    """
    if not torch.cuda.is_available():
        return int(psutil.virtual_memory().available) // ranks.current().local_size
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0]) + unused


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was too small; not only PyTorch's allocators say it."""
    texts = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def _family(config: Mapping[str, Any]) -> Family:
    """Family of a model's ``config.json``; Llama, as an estimate, for one that the fast decoder lacks."""
    return known.family_of(config) or known.LLAMA


def _is_capped(config: Mapping[str, Any]) -> bool:
    return bool(config.get("attn_logit_softcapping", _family(config).caps))


def projection_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a decoder layer's linear layers, by name, from a model's ``config.json``."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or width // heads
    q, kv = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    family = _family(config)
    outputs = [q, kv, kv] if len(family.qkv) > 1 else [q + 2 * kv]
    shapes = {name: (width, size) for name, size in zip(family.qkv, outputs, strict=True)}
    inner_outputs = [inner, inner] if len(family.gate_up) > 1 else [2 * inner]
    shapes |= {name: (width, size) for name, size in zip(family.gate_up, inner_outputs, strict=True)}
    return {**shapes, "o_proj": (q, width), "down_proj": (inner, width)}


def layer_bytes_per_token(
    config: Mapping[str, Any], row_length: int, *, itemsize: int, ranks: Mapping[str, int],
    dropout: bool, flash: bool, recomputed: bool, grouped: bool = False,
) -> int:  # fmt: skip
    """Count the bytes per token that a layer of the fast decoder keeps for the backward pass.

    They are added up tensor by tensor as autograd saves them; tests compare the sum with what it does save.

    Args:
        config: the model's ``config.json``.
        row_length: number of tokens of a row.
        itemsize: bytes per number of the dtype that the model computes in.
        ranks: LoRA rank by name of the adapted linear layers.
        dropout: whether the adapters' inputs get dropout.
        flash: whether one attention kernel runs over all rows (``varlen`` or ``flex``).
        recomputed: whether the backward pass computes the MLP's inner product again.
        grouped: whether attention runs over groups of rows on a CPU (``cpu_attention``).
    """
    sizes, family, capped = projection_shapes(config), _family(config), _is_capped(config)
    (q, width), heads = sizes["o_proj"], config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    kv = q // heads * groups
    norms = (family.before_attention, family.after_attention, family.before_mlp, family.after_mlp)
    kept = sum(name is not None for name in norms) * (width * itemsize + 4)  # input and float32 scale
    if family.qk_norm != "none":
        kept += (q + kv) * itemsize + 4 * (heads + groups if family.qk_norm == "head" else 2)
    kept += 2 * config["intermediate_size"] * itemsize  # gate and up; their product is recomputed
    if grouped:
        kept += (q + 2 * kv) * itemsize  # queries, keys and values
    elif flash or not capped:
        # Queries, keys, values, output, and a float32 log-sum-exp per head, of which FlexAttention keeps two.
        kept += (2 * q + 2 * kv) * itemsize + (8 if capped else 4) * heads
    else:
        # Queries, keys and values of every head; for each pair of positions tanh, softmax, weights and mask.
        kept += 3 * q * itemsize + (8 * heads + 1) * row_length
    inputs = {name: sizes[name][0] for name in ranks}
    if dropout:  # each adapter has its own input and, on a CPU in the same dtype, its mask
        return int(kept + itemsize * (2 * sum(inputs.values()) + sum(ranks.values())))
    shared = {name: together[0] for together in (family.qkv, family.gate_up) for name in together}
    inputs = {shared.get(name, name): n for name, n in inputs.items()}
    if flash:
        inputs.pop("o_proj", None)  # the attention's output, counted already
    if recomputed:
        inputs.pop("down_proj", None)
    products = sum(ranks.values())  # of the inputs with the A matrices
    return int(kept + itemsize * (sum(inputs.values()) + products))


def should_dequantise(resident: str, weights: int, itemsize: int, available: float) -> bool:
    """Whether ``model.resident`` has 4-bit weights dequantised once, given the free memory in bytes."""
    extra = weights * (itemsize - NF4_BYTES)
    return resident == "bf16" or (resident == "auto" and extra <= RESIDENT_SHARE * available)


def forecast_memory(
    model_config: Mapping[str, Any], model: ModelConfig, lora: LoraConfig, train: TrainConfig, *,
    tokens: int, row_length: int,
) -> tuple[float, float]:  # fmt: skip
    """Estimate the memory of a training before its model is loaded.

    Args:
        model_config: the model's ``config.json``.
        model, lora, train: sections of the run's configuration.
        tokens: maximum number of tokens of a micro-batch.
        row_length: maximum number of tokens of a row.

    Returns:
        Bytes of the weights (of fully trained ones with gradients and optimiser states), and bytes of the
        activations of one micro-batch.
    """
    itemsize, targets = (
        4 if model.dtype == "float32" else 2,
        _family(model_config).adapted(lora.target_modules),
    )
    width, depth = model_config["hidden_size"], model_config["num_hidden_layers"]
    linear = _size(model_config, projection_shapes(model_config))
    tied = model_config.get("tie_word_embeddings", _family(model_config).tied)
    weights = model_config["vocab_size"] * width * (1 if tied else 2) * itemsize
    weights += linear * (NF4_BYTES if model.load_in_4bit else itemsize)
    in_4bit = model.load_in_4bit
    if in_4bit and should_dequantise(model.resident, linear, itemsize, free_bytes() - weights):
        weights += linear * (itemsize - NF4_BYTES)
        in_4bit = False
    if model.resident == "fp8":
        weights += linear * FP8_BYTES
    trained = max(0, depth - lora.first_layer)
    if lora.kind == "full":
        weights += FULL_BYTES * trained / depth * _size(model_config, targets)
    half_on_gpu, family = torch.cuda.is_available() and itemsize == 2, _family(model_config)
    plain = lora.kind == "lora" and lora.dropout == 0 and len(family.gate_up) == 2
    plain &= {*family.gate_up, "down_proj"} <= set(targets)
    layer = layer_bytes_per_token(
        model_config, min(row_length, tokens), itemsize=itemsize,
        ranks=dict.fromkeys(targets, lora.r if lora.kind == "lora" else 0),
        dropout=lora.dropout > 0,
        flash=half_on_gpu and has_flash_attention(torch.device("cuda")),
        recomputed=plain and (half_on_gpu or not in_4bit),
        grouped=not torch.cuda.is_available() and itemsize == 2 and not _is_capped(model_config),
    )  # fmt: skip
    if train.checkpoint == "all":
        return weights, tokens * (trained * width * itemsize + WORKSPACE * layer)
    return weights, tokens * (trained + WORKSPACE) * layer


def _size(model_config: Mapping[str, Any], names: Iterable[str]) -> int:
    """Number of weights of the named linear layers in all decoder layers."""
    shapes = projection_shapes(model_config)
    return int(model_config["num_hidden_layers"] * sum(math.prod(shapes[name]) for name in names))


SLACK_GB = 2.0
"""Freed memory that is returned to the system, in 10⁹ bytes; less would soon be requested again."""


class Releaser:
    """Returns freed activations to the system; does nothing on a GPU, whose allocator reuses them well.

    glibc keeps freed blocks, and batches of new shapes do not fit into them: a training of SmolLM2 that needs
    3 GB grew to 9 GB within an epoch.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._least = self._held()

    def release(self) -> None:
        """Return memory to the system if more than :data:`SLACK_GB` has been freed since the last time."""
        if torch.cuda.is_available() or self._held() < self._least + SLACK_GB * 1e9:
            return
        _malloc_trim()(0)
        self._least = min(self._least, self._held())

    def _held(self) -> float:
        return float(self._process.memory_info().rss)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it; macOS and musl do not
    return trim if trim is not None else lambda _: None
