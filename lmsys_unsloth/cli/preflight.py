"""Checks that run before weights are loaded: each is a line of one table, and an error stops the run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from lmsys_unsloth.config.checks import TRAINED_HEADS
from lmsys_unsloth.config.environment import installed_versions
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import attention, memory
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.train.steps import PLANNED_TOKENS

Verdict = Literal["ok", "warning", "error"]
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
"""Folder of the pinned versions; it exists only where the code runs from a checkout."""

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo", "xformers")


@dataclass(frozen=True)
class Check:
    """Result of one check: a line of the table."""

    name: str
    value: str
    verdict: Verdict = "ok"
    remedy: str = ""


def run_checks(config: Config, encoder: RowEncoder, folder: Path) -> list[Check]:
    """Run all checks; ``folder`` holds the model's files, without weights if these are not downloaded yet."""
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [
        *(Check(name, value) for name, value in encoder.facts().items()),
        _architecture(config.model, model),
        _context(config, encoder, model),
        _vocabulary(encoder, model),
        _lm_head(model, folder),
        _head(config, encoder),
        _caps(config.model, model),
        _dtype(config.model),
        _attention(config),
        _memory(config, model),
        _versions(),
    ]


def print_checks(checks: Sequence[Check]) -> None:
    """Print the table of results, and the remedies of warnings below it.

    Raises:
        UserError: a verdict is "error"; the message lists the remedies of all errors.
    """
    table = Table("check", "value", "verdict", box=None, pad_edge=False)
    for check in checks:
        colour = _COLOURS[check.verdict]
        table.add_row(check.name, check.value, f"[{colour}]{check.verdict}[/{colour}]")
    Console().print(table)
    for check in checks:
        if check.verdict == "warning":
            Console().print(f"  {check.name}: {check.remedy}", highlight=False, markup=False)
    errors = [f"{check.name} = {check.value}: {check.remedy}" for check in checks if check.verdict == "error"]
    if errors:
        raise UserError("\n  ".join(["checks before the run failed:", *errors]))


def _require(condition: bool, name: str, value: str, remedy: str) -> Check:
    """A check whose verdict is "ok" under a condition and "error" otherwise."""
    return Check(name, value) if condition else Check(name, value, "error", remedy)


def _architecture(config: ModelConfig, model: dict[str, Any]) -> Check:
    kind = str(model.get("model_type"))
    remedy = f"model.architecture says {config.architecture}; choose the model that the folder holds"
    return _require(kind == config.architecture, "architecture", kind, remedy)


def _context(config: Config, encoder: RowEncoder, model: dict[str, Any]) -> Check:
    """Whether the longest row, with the part of the answer that is fed to the model, fits its window."""
    longest = max(map(len, encoder.answer_ids))
    fed = longest if config.train.loss == "answer_eos" else longest - 1
    needed, largest = config.prompt.max_tokens + fed, config.model.max_seq_length
    limit = int(model.get("max_position_embeddings") or largest)
    value = f"{needed:,} of {limit:,} tokens"
    if needed > limit:
        remedy = f"the model can't use later positions; set prompt.max_tokens={limit - fed}"
        return Check("context", value, "error", remedy)
    remedy = (
        f"model.max_seq_length = {largest:,} is above the model's own {limit:,} positions, and unsloth would "
        f"rescale the rotary embeddings of all of them; set model.max_seq_length={limit}"
    )
    return _require(largest <= limit, "context", value, remedy)


def _vocabulary(encoder: RowEncoder, model: dict[str, Any]) -> Check:
    size, largest = int(model["vocab_size"]), max(max(ids) for ids in encoder.answer_ids)
    value = f"{size:,} entries" + (f", but answer id {largest:,}" if largest >= size else "")
    remedy = "tokenizer and weights belong to different models; choose a folder where they match"
    return _require(largest < size, "vocabulary", value, remedy)


def _head(config: Config, encoder: RowEncoder) -> Check:
    """Whether the answers' tokens suit the head and the loss."""
    kind, loss, lengths = config.head.kind, config.train.loss, [len(ids) for ids in encoder.answer_ids]
    value = f"{kind}, {len(lengths)} answers"
    if kind in TRAINED_HEADS and max(lengths) > 1:
        value += f" of {', '.join(map(str, lengths))} tokens"
        remedy = (
            f"head={kind} takes answers of one token each; use head=lm or shorter answers (prompt.answers)"
        )
        return Check("head", value, "error", remedy)
    if loss == "answer_eos" and encoder.vocabulary.eos_id is None:
        remedy = (
            "train.loss=answer_eos needs an EOS token, and the tokenizer has none; use train.loss=vocabulary"
        )
        return Check("head", value, "error", remedy)
    return Check("head", value)


def _lm_head(model: dict[str, Any], folder: Path) -> Check:
    """transformers initialises an LM head that is neither tied nor stored at random, with only a warning."""
    tied = bool(model.get("tie_word_embeddings", model.get("model_type") == "gemma2"))
    kind = "tied to the embeddings" if tied else "separate"
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names.update(tensors.keys())
    if not names:
        return Check("LM head", f"{kind}; weights not downloaded yet")
    stored = any(name.endswith("lm_head.weight") for name in names)
    if tied:
        return Check("LM head", f"{kind}, a copy is stored" if stored else kind)
    remedy = (
        "it would be initialised at random; if it is tied to the embeddings, set tie_word_embeddings to true "
        "in the model's config.json, otherwise download the weights again"
    )
    return _require(
        stored, "LM head", f"{kind}, {'stored' if stored else 'but not among the weights'}", remedy
    )


def _caps(config: ModelConfig, model: dict[str, Any]) -> Check:
    final, scores = model.get("final_logit_softcapping"), model.get("attn_logit_softcapping")
    value = f"final {final}, attention {scores}" if final or scores else "none"
    remedy = (
        "Gemma 2 was trained with final_logit_softcapping 30 and attn_logit_softcapping 50; restore them in "
        "the model's config.json"
    )
    return _require(config.architecture != "gemma2" or bool(final and scores), "soft caps", value, remedy)


def _dtype(config: ModelConfig) -> Check:
    if not torch.cuda.is_available():
        quantised = ", 4-bit weights" if config.load_in_4bit else ""
        return Check("dtype", f"{config.dtype} on the CPU{quantised}")
    if torch.cuda.is_bf16_supported():
        return Check("dtype", "bfloat16" if config.dtype == "auto" else config.dtype)
    works = config.architecture != "gemma2" or config.dtype == "float32"
    value = "float32" if config.dtype == "float32" else "float16 (this GPU has no bfloat16)"
    return _require(works, "dtype", value, "Gemma 2 overflows in float16; set model.dtype=float32")


def _attention(config: Config) -> Check:
    gemma, on_gpu = config.model.architecture == "gemma2", torch.cuda.is_available()
    if not config.train.fast:
        kind = "unsloth's" if on_gpu else "eager, as SDPA can't cap logits" if gemma else "PyTorch SDPA"
        return Check("attention", f"{kind}, padded batches (train.fast=false)")
    float32 = config.model.dtype == "float32"
    if not on_gpu or float32 or not attention.has_flash_attention(torch.device("cuda")):
        return Check("attention", "one row at a time, " + ("capped logits" if gemma else "PyTorch SDPA"))
    kernel = "FlexAttention with cap and window" if gemma else "variable-length flash attention"
    return Check("attention", f"packed rows, {kernel}, {torch.cuda.get_device_name()}")


def _memory(config: Config, model: dict[str, Any]) -> Check:
    """Compare weights and activations of one micro-batch with the free memory."""
    chosen = config.train.tokens_per_micro_batch
    weights, activations = memory.forecast_memory(
        model, config.model, config.lora, config.train,
        tokens=PLANNED_TOKENS if chosen == "auto" else chosen, row_length=config.prompt.max_tokens,
    )  # fmt: skip
    free = memory.free_bytes() / 1e9
    need = (weights + activations) / 1e9
    parts = f"weights {weights / 1e9:.1f}, activations {activations / 1e9:.1f}"
    value = f"about {need:.1f} GB of {free:.1f} GB free ({parts})"
    if need < free:
        return Check("memory", value)
    return Check(
        "memory", value, "warning",
        "train.checkpoint=auto saves activations by computing more; a lower train.tokens_per_micro_batch "
        "or model.resident=4bit needs less",
    )  # fmt: skip


def _versions() -> Check:
    """Compare the installed versions with the pinned ones, as far as these are known."""
    pins, installed = _pins(), installed_versions(_PACKAGES)
    different = [
        f"{name} {version} (pinned: {pins[name]})"
        for name, version in installed.items()
        if name in pins and version.partition("+")[0] != pins[name]
    ]
    unpinned = ", ".join(f"{name} {version}" for name, version in installed.items() if name not in pins)
    if different:
        remedy = "these versions were not tested together; install the pinned ones (`make env` in a checkout)"
        return Check("versions", ", ".join(different), "warning", remedy)
    if not pins.keys() & installed.keys():
        remedy = "the tested versions are in requirements/ of the repository; compare them with these"
        return Check("versions", f"pins not known; installed: {unpinned}", "warning", remedy)
    return Check("versions", "as pinned" + (f"; not pinned: {unpinned}" if unpinned else ""))


def _pins() -> dict[str, str]:
    """Pinned versions by package, from the checkout's requirements, otherwise from package metadata."""
    device = "cuda.txt" if torch.cuda.is_available() else "cpu.txt"
    files = [REQUIREMENTS / name for name in ("base.txt", "no-deps.txt", device)]
    lines = [line for file in files if file.is_file() for line in file.read_text("utf-8").splitlines()]
    if not lines:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines = importlib.metadata.requires("lmsys_unsloth") or []
    found = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}
