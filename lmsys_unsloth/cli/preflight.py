"""What can be known to go wrong before weights are loaded: one list of checks, one table; red stops a run."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import attention, loading, memory
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.train.steps import PLANNED_TOKENS

Verdict = Literal["ok", "look", "stop"]
_COLOURS = {"ok": "green", "look": "yellow", "stop": "red"}
PINS = Path(__file__).resolve().parents[2] / "requirements"
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo", "xformers")


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    value: str
    verdict: Verdict = "ok"
    remedy: str = ""


def checks(config: Config, encoder: RowEncoder, folder: Path) -> list[Check]:
    """Everything that is checked, in the order of the table.

    Args:
        folder: the model's local folder; its weight files may be missing (a preview downloads none).
    """
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = [Check(name, value) for name, value in encoder.facts().items()]
    found += [
        _architecture(config.model, model),
        _context(config, model),
        _vocabulary(encoder, model),
        _head(model, folder),
        _caps(config.model, model),
        _dtype(config.model),
        _attention(config),
        _memory(config, model),
        *_versions(),
    ]
    return found


def print_checks(found: Sequence[Check]) -> None:
    """Print the table.

    Raises:
        UserError: a check says stop; the message has the remedies of all that do.
    """
    table = Table("check", "value", "verdict", box=None, pad_edge=False)
    for check in found:
        colour = _COLOURS[check.verdict]
        table.add_row(check.name, check.value, f"[{colour}]{check.verdict}[/{colour}]")
    Console().print(table)
    for check in found:
        if check.verdict == "look":
            Console().print(f"  {check.name}: {check.remedy}", highlight=False, markup=False)
    stops = [check for check in found if check.verdict == "stop"]
    if stops:
        lines = [f"{check.name} = {check.value}: {check.remedy}" for check in stops]
        raise UserError("\n  ".join(["the run would go wrong:", *lines]))


def _architecture(config: ModelConfig, model: dict[str, Any]) -> Check:
    kind = str(model.get("model_type"))
    if kind == config.architecture:
        return Check("architecture", kind)
    return Check(
        "architecture", kind, "stop",
        f"model.architecture says {config.architecture}; choose the model that the folder holds",
    )  # fmt: skip


def _context(config: Config, model: dict[str, Any]) -> Check:
    limit = int(model.get("max_position_embeddings", 0))
    value = f"{config.prompt.max_tokens:,} of {limit:,} tokens"
    if config.prompt.max_tokens <= limit:
        return Check("context", value)
    return Check(
        "context", value, "stop", f"the model knows no later positions; set prompt.max_tokens={limit}"
    )


def _vocabulary(encoder: RowEncoder, model: dict[str, Any]) -> Check:
    size, largest = int(model["vocab_size"]), max(max(ids) for ids in encoder.answer_ids)
    if largest < size:
        return Check("vocabulary", f"{size:,} entries")
    return Check(
        "vocabulary", f"{size:,} entries, but answer id {largest:,}", "stop",
        "tokenizer and weights belong to different models; name a folder in which they belong together",
    )  # fmt: skip


def _head(model: dict[str, Any], folder: Path) -> Check:
    """A head that is neither tied nor stored would be drawn at random, with no more than a warning."""
    tied = bool(model.get("tie_word_embeddings", model.get("model_type") == "gemma2"))
    stored = _tensor_names(folder)
    if not stored:
        kind = "tied to the embeddings" if tied else "own"
        return Check("LM head", f"{kind}; weights not here yet")
    own = any(name.endswith("lm_head.weight") for name in stored)
    if tied:
        return Check("LM head", "tied to the embeddings" + (", a copy is stored" if own else ""))
    if own:
        return Check("LM head", "own, stored")
    return Check(
        "LM head", "own, but not among the weights", "stop",
        "it would be random; set tie_word_embeddings to true in the model's config.json if it is tied, "
        "else fetch the weights again",
    )  # fmt: skip


def _tensor_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names.update(tensors.keys())
    return names


def _caps(config: ModelConfig, model: dict[str, Any]) -> Check:
    final, attention = model.get("final_logit_softcapping"), model.get("attn_logit_softcapping")
    value = f"final {final}, attention {attention}"
    if config.architecture == "gemma2" and (not final or not attention):
        return Check(
            "soft caps", value, "stop",
            "Gemma 2 was trained with 30 and 50; put them back into the model's config.json",
        )  # fmt: skip
    return Check("soft caps", value if final or attention else "none")


def _dtype(config: ModelConfig) -> Check:
    if not torch.cuda.is_available():
        return Check(
            "dtype", f"{config.dtype} on the CPU" + (", 4-bit weights" if config.load_in_4bit else "")
        )
    if torch.cuda.is_bf16_supported():
        return Check("dtype", "bfloat16" if config.dtype == "auto" else config.dtype)
    if config.architecture == "gemma2" and config.dtype != "float32":
        return Check(
            "dtype", "float16 (this GPU has no bfloat16)", "stop",
            "Gemma 2 overflows in float16: model.dtype=float32",
        )  # fmt: skip
    return Check("dtype", "float16 (this GPU has no bfloat16)")


def _attention(config: Config) -> Check:
    gemma, on_gpu = config.model.architecture == "gemma2", torch.cuda.is_available()
    if not config.train.fast:
        own = "unsloth's" if on_gpu else "eager, as SDPA can't cap logits" if gemma else "PyTorch SDPA"
        return Check("attention", f"{own}, rows padded (train.fast=false)")
    if not on_gpu or not attention.has_kernels(torch.device("cuda")):
        return Check("attention", "row by row" + (", capped logits" if gemma else ", PyTorch SDPA"))
    kernel = "FlexAttention with cap and window" if gemma else "variable-length flash attention"
    return Check("attention", f"packed rows, {kernel}, {torch.cuda.get_device_name()}")


def _memory(config: Config, model: dict[str, Any]) -> Check:
    """Weights, head in float32 for a step, and activations of one micro-batch, against what is free."""
    width, inner = int(model["hidden_size"]), int(model["intermediate_size"])
    depth, entries = int(model["num_hidden_layers"]), int(model["vocab_size"])
    heads = int(model["num_attention_heads"])
    head_dim = int(model.get("head_dim") or width // heads)
    q_width, kv_width = head_dim * heads, head_dim * int(model.get("num_key_value_heads", heads))
    per_layer = 2 * width * (q_width + kv_width) + 3 * width * inner
    weight_bytes = 0.56 if config.model.load_in_4bit else 2  # NF4 with its block scales; bfloat16
    heads_stored = 1 if model.get("tie_word_embeddings", config.model.architecture == "gemma2") else 2
    weights = depth * per_layer * weight_bytes + 2 * entries * width * heads_stored
    free = memory.free_bytes() / 1e9
    extra = depth * per_layer * (2 - weight_bytes)  # when 4-bit weights are dequantised once
    may = config.model.resident == "auto" and extra < loading.RESIDENT_SHARE * (free * 1e9 - weights)
    if config.model.resident == "bf16" or may:
        weights += extra
    # The bfloat16 tensors that the fast decoder keeps of a layer for its backward pass: what enters norms and
    # matrix products. unsloth's kernels keep the attention's output once and compute the gated product again.
    norms = 6 if config.model.architecture == "gemma2" else 4
    fused = int(torch.cuda.is_available())
    per_token = depth * 2 * (norms * width + (3 - fused) * q_width + 2 * kv_width + (3 - fused) * inner)
    chosen = config.train.tokens_per_micro_batch
    tokens = PLANNED_TOKENS if chosen == "auto" else chosen
    activations: float = per_token * tokens
    if config.train.checkpoint == "all":
        activations = 2 * width * depth * tokens + 2 * per_token / depth * tokens
    need = (weights + activations) / 1e9
    parts = f"weights {weights / 1e9:.1f}, activations {activations / 1e9:.1f}"
    value = f"about {need:.1f} GB of {free:.1f} GB free ({parts})"
    if need < free:
        return Check("memory", value)
    return Check(
        "memory", value, "look",
        "train.checkpoint=auto saves activations by computing more; a lower train.tokens_per_micro_batch "
        "or model.resident=4bit needs less",
    )  # fmt: skip


def _versions() -> Iterator[Check]:
    """Installed versions against the pins of the checkout this code runs from."""
    device = "cuda.txt" if torch.cuda.is_available() else "cpu.txt"
    files = [PINS / name for name in ("base.txt", "no-deps.txt", device)]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, flags=re.MULTILINE))
    installed = {name: version for name in _PACKAGES if (version := _installed(name))}
    other = [
        f"{name} {version} (pinned {pins[name]})"
        for name, version in installed.items()
        if name in pins and version.partition("+")[0] != pins[name]
    ]
    if other:
        yield Check(
            "versions", ", ".join(other), "look", "not what was tested together; `make env` installs the pins"
        )
    else:
        yield Check("versions", "as pinned")


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
