"""Checks of a model's weight files against its ``config.json``; they read the files' headers only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmsys_unsloth.cli.check import Check, require
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.families.known import family_of
from lmsys_unsloth.model.families.model_folder import Stored
from lmsys_unsloth.model.trained_weights import LAYER, missing_layers

_PROJECTION = re.compile(r"(?:^|\.)layers\.(\d+)\..*?(\w+)\.weight$")
_ITEMSIZES = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}
"""Bytes of the dtypes in which bitsandbytes stores packed weights."""
_SHOWN = 3
"""Number of differences that a message lists."""


def check_tensors(model: Mapping[str, Any], stored: Mapping[str, Stored]) -> Check:
    """Compare the shapes of embeddings and projections and the number of layers with ``config.json``."""
    if not stored:
        return Check("tensors", "weights not downloaded yet")
    if family_of(model) is None:
        return Check("tensors", f"{len(stored):,}, not compared for model_type {model.get('model_type')}")
    shapes = memory.projection_shapes(model)
    problems, layers = [], set()
    for name, tensor in stored.items():
        if name.endswith("embed_tokens.weight"):
            problems += _difference(name, tensor, (model["vocab_size"], model["hidden_size"]))
        elif match := _PROJECTION.search(name):
            layers.add(int(match[1]))
            if match[2] in shapes:
                problems += _difference(name, tensor, shapes[match[2]][::-1])
    depth = model["num_hidden_layers"]
    if layers != set(range(depth)):
        problems.append(f"{len(layers)} layers, config.json says {depth}")
    if not problems:
        return Check("tensors", f"{len(stored):,}, shapes as in config.json")
    more = f" and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return Check(
        "tensors", "; ".join(problems[:_SHOWN]) + more, "error",
        "weights and config.json belong to different models; download both again from one place",
    )  # fmt: skip


def _difference(name: str, tensor: Stored, expected: tuple[int, ...]) -> list[str]:
    """The difference between a tensor's shape and the expected one in words, if there is one."""
    if tensor.shape[1:] == (1,):  # packed: two 4-bit weights in a byte
        weights = 2 * math.prod(tensor.shape) * _ITEMSIZES.get(tensor.dtype, 1)
        same, shape = weights == math.prod(expected), f"{weights:,} 4-bit weights"
    else:
        same, shape = tensor.shape == expected, f"{list(tensor.shape)}"
    return [] if same else [f"{name} has {shape}, config.json says {list(expected)}"]


def check_lm_head(model: Mapping[str, Any], stored: Mapping[str, Stored]) -> Check:
    """transformers initialises an LM head that is neither tied nor stored at random, with only a warning."""
    family = family_of(model)
    if family is None:
        return Check("LM head", "checked when the model is loaded")
    tied = bool(model.get("tie_word_embeddings", family.tied))
    kind = "tied to the embeddings" if tied else "separate"
    if not stored:
        return Check("LM head", f"{kind}; weights not downloaded yet")
    is_stored = any(name.endswith("lm_head.weight") for name in stored)
    if tied:
        return Check("LM head", f"{kind}, a copy is stored" if is_stored else kind)
    remedy = (
        "it would be initialised at random; if it is tied to the embeddings, set tie_word_embeddings to true "
        "in the model's config.json, otherwise download the weights again"
    )
    value = f"{kind}, {'stored' if is_stored else 'but not among the weights'}"
    return require(is_stored, "LM head", value, remedy)


def check_adapted_layers(
    targets: Sequence[str], model: Mapping[str, Any], stored: Mapping[str, Stored]
) -> Check:
    """Check that the model has the linear layers that are to be trained (``lora.target_modules``)."""
    family = family_of(model)
    if family is not None:
        names, targets = set(family.projections), family.adapted(targets)
    else:
        names = {
            name.split(".")[-2]
            for name, tensor in stored.items()
            if LAYER.search(name) and name.endswith(".weight") and len(tensor.shape) == 2
        }
    missing = set(targets) - names
    if not names or not missing:
        return Check("adapted layers", ", ".join(targets))
    return Check("adapted layers", ", ".join(targets), "error", missing_layers(missing, names))
