"""Checks that run before weights are loaded: each is a line of one table, and an error stops the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.cli.check import Check, require
from lmsys_unsloth.cli.checkpoint_checks import (
    check_adapted_layers,
    check_lm_head,
    check_tensors,
)
from lmsys_unsloth.config.checks import TRAINED_HEADS
from lmsys_unsloth.config.environment import installed_versions
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import pinned_versions
from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import attention, memory
from lmsys_unsloth.model.families.known import family_of
from lmsys_unsloth.model.families.model_folder import model_settings, stored_tensors
from lmsys_unsloth.model.layers import fp8
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.train.steps import PLANNED_TOKENS

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

MIN_VOCABULARY_SHARE = 0.95
"""Tokenizer entries divided by embeddings, below which a warning is given."""

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo", "xformers")


def run_checks(config: Config, encoder: RowEncoder, folder: Path, *, training: bool = True) -> list[Check]:
    """Run all checks.

    Args:
        config, encoder: of the run.
        folder: the model's files, without weights if these are not downloaded yet.
        training: whether the run trains; adapters are checked only then.

    Raises:
        UserError: ``config.json`` or a file of weights can't be read.
    """
    model, stored = model_settings(folder), stored_tensors(folder)
    return [
        *(Check(name, value) for name, value in encoder.facts().items()),
        _family(model),
        check_tensors(model, stored),
        _context(config, encoder, model),
        _vocabulary(encoder, model),
        check_lm_head(model, stored),
        _head(config, encoder),
        *([check_adapted_layers(config.lora.target_modules, model, stored)] if training else []),
        _caps(model),
        _dtype(config.model, model),
        _attention(config, model),
        _memory(config, model),
        *([_fp8(config)] if config.model.resident == "fp8" else []),
        *([_processes(config, ranks.current().size)] if training and ranks.current().size > 1 else []),
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


def _family(model: Mapping[str, Any]) -> Check:
    kind = str(model.get("model_type"))
    return Check("family", kind if family_of(model) else f"{kind}, computed by the model's own forward pass")


def _context(config: Config, encoder: RowEncoder, model: Mapping[str, Any]) -> Check:
    """Whether the longest row, with the part of the answer that is fed to the model, fits its window."""
    longest = max(map(len, encoder.answer_ids))
    fed = longest if config.train.loss == "answer_eos" else longest - 1
    needed = config.prompt.max_tokens + fed
    limit: int | None = model.get("max_position_embeddings") or model.get("n_positions")
    if limit is None:
        return Check("context", f"{needed:,} tokens; config.json names no limit")
    remedy = f"the model can't use later positions; set prompt.max_tokens={limit - fed}"
    return require(needed <= limit, "context", f"{needed:,} of {limit:,} tokens", remedy)


def _vocabulary(encoder: RowEncoder, model: Mapping[str, Any]) -> Check:
    """Compare the tokenizer with the embeddings, whose number is often rounded up to a multiple of 64 or 128.

    Tokens that were added to a tokenizer may lie beyond the embeddings (Gemma 3 1B has one for images).
    """
    size, entries = model.get("vocab_size"), len(encoder.tokenizer)
    if size is None:
        return Check("vocabulary", f"{entries:,} entries; config.json does not name the embeddings")
    largest = max(max(ids) for ids in encoder.answer_ids)
    value = f"{entries:,} entries, {size:,} embeddings"
    value += f", but answer id {largest:,}" if largest >= size else ""
    remedy = "tokenizer and weights belong to different models; choose a folder where they match"
    if largest >= size or encoder.tokenizer.vocab_size > size:
        return Check("vocabulary", value, "error", remedy)
    if entries < MIN_VOCABULARY_SHARE * size:
        remedy = "much fewer than the embeddings; is the tokenizer that of another model?"
        return Check("vocabulary", value, "warning", remedy)
    return Check("vocabulary", value)


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


def _caps(model: Mapping[str, Any]) -> Check:
    family = family_of(model)
    final, scores = model.get("final_logit_softcapping"), model.get("attn_logit_softcapping")
    value = f"final {final}, attention {scores}" if final or scores else "none"
    remedy = (
        "models of this family were trained with caps; restore final_logit_softcapping and "
        "attn_logit_softcapping in the model's config.json (Gemma 2: 30 and 50)"
    )
    needed = family is not None and family.caps
    return require(not needed or bool(final and scores), "soft caps", value, remedy)


def _dtype(config: ModelConfig, model: Mapping[str, Any]) -> Check:
    if not torch.cuda.is_available():
        quantised = ", 4-bit weights" if config.load_in_4bit else ""
        return Check("dtype", f"{config.dtype} on the CPU{quantised}")
    if torch.cuda.is_bf16_supported():
        return Check("dtype", "bfloat16" if config.dtype == "auto" else config.dtype)
    family = family_of(model)
    works = family is None or not family.overflows_in_float16 or config.dtype == "float32"
    value = "float32" if config.dtype == "float32" else "float16 (this GPU has no bfloat16)"
    remedy = f"models of type {model['model_type']} overflow in float16; set model.dtype=float32"
    return require(works, "dtype", value, remedy)


def _fp8(config: Config) -> Check:
    """Whether products in fp8 would be fast, or computed at all."""
    if not torch.cuda.is_available():
        return Check("fp8", "emulated on the CPU", "warning", "this is slow; use model.resident=auto")
    if not config.train.fast:
        return Check(
            "fp8", "not used", "warning", "only the fast decoder uses it; leave out train.fast=false"
        )
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    needed = ".".join(map(str, fp8.CAPABILITY))
    return require(
        fp8.is_supported(), "fp8", f"{torch.cuda.get_device_name()}, compute capability {capability}",
        f"needs {needed} or more (Ada, Hopper, Blackwell); use model.resident=auto",
    )  # fmt: skip


def _attention(config: Config, model: Mapping[str, Any]) -> Check:
    family, on_gpu = family_of(model), torch.cuda.is_available()
    capped = bool(model.get("attn_logit_softcapping"))
    if family is None or not config.train.fast:
        kind = "unsloth's" if on_gpu else "eager, as SDPA can't cap logits" if capped else "PyTorch SDPA"
        reason = "train.fast=false" if family else "no fast decoder"
        return Check("attention", f"{kind}, padded batches ({reason})")
    float32 = config.model.dtype == "float32"
    if not on_gpu or float32 or not attention.has_flash_attention(torch.device("cuda")):
        if not (on_gpu or float32 or capped):
            return Check("attention", "rows of similar length together; float32: one row at a time")
        return Check("attention", "one row at a time, " + ("capped logits" if capped else "PyTorch SDPA"))
    kernel = "FlexAttention with capped logits" if capped else "variable-length flash attention"
    window = ", sliding window" if family.window != "none" and model.get("sliding_window") else ""
    return Check("attention", f"packed rows, {kernel}{window}, {torch.cuda.get_device_name()}")


def _memory(config: Config, model: Mapping[str, Any]) -> Check:
    """Compare weights and activations of one micro-batch with the free memory."""
    family = family_of(model)
    if family is None:
        return Check("memory", f"no forecast for model_type {model.get('model_type')}")
    shapes, names = memory.projection_shapes(model), family.adapted(config.lora.target_modules)
    adapted = [name for name in names if name in shapes]
    lora = config.lora.model_copy(update={"target_modules": adapted})
    chosen = config.train.tokens_per_micro_batch
    weights, activations = memory.forecast_memory(
        model, config.model, lora, config.train,
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


def _processes(config: Config, processes: int) -> Check:
    """Whether an optimiser step has rows for every process; both orders of a row are computed by one."""
    rows = config.train.rows_per_step // (2 if config.data.swap == "both" else 1)
    value = f"{processes}, for up to {rows} rows in a step"
    remedy = f"some would never compute anything; start at most {rows}, or raise train.rows_per_step"
    return require(processes <= rows, "processes", value, remedy)


def _versions() -> Check:
    """Compare the installed versions with the pinned ones."""
    device = "cuda.txt" if torch.cuda.is_available() else "cpu.txt"
    pins = pinned_versions("base.txt", "no-deps.txt", device)
    installed = installed_versions(_PACKAGES)
    different = [
        f"{name} {version} (pinned: {pins[name]})"
        for name, version in installed.items()
        if name in pins and version.partition("+")[0] != pins[name]
    ]
    unpinned = ", ".join(f"{name} {version}" for name, version in installed.items() if name not in pins)
    if different:
        remedy = "these versions were not tested together; install the pinned ones (`make env` in a checkout)"
        return Check("versions", ", ".join(different), "warning", remedy)
    return Check("versions", "as pinned" + (f"; not pinned: {unpinned}" if unpinned else ""))
