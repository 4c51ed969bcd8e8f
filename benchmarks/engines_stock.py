"""What this project is compared with: stock unsloth with trl's trainer, and transformers with PEFT."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from architectures import lengths, shape
from engines import ANSWERS, LINEAR, Measurement, Variant, load
from gpu_timing import (
    Numbers,
    measure,
    measure_logits,
    micro_batches,
    numbers,
    optimizer_step,
    padded_ids,
    reset_memory,
    synchronize,
)

ROWS_PER_STEP = 10
"""Rows of an optimiser step of trl's trainer: on average as many tokens as this project's micro-batches of at
most 16,384 padded tokens hold."""

CHECKPOINTED = "10 rows, checkpointed"
KEPT = "2 × 5 rows, all activations kept"
ROWS = {CHECKPOINTED: 10, KEPT: 5}
"""Rows of a micro-batch."""


def stock_variants(name: str, _: argparse.Namespace) -> list[Variant]:
    """List the variants of stock unsloth; scoring comes first, as the trainer wraps the model's forward."""
    compiling = 60.0 if name == "gemma2" else 10.0
    return [
        Variant("scoring", "logits at every position", 0.4, compiling),
        Variant("training", CHECKPOINTED, 0.3, compiling),
        Variant("training", KEPT, 0.35, compiling),
    ]


def stock(
    name: str, folder: Path, rank: int, variants: Sequence[Variant], options: argparse.Namespace
) -> Iterator[Measurement]:
    """Load unsloth's model once, and yield the wanted variants with what measures them."""
    model, tokenizer = load(folder, name, rank, "all")
    vocabulary = shape(name, options)["vocab_size"]
    for variant in variants:
        if variant.job == "scoring":
            yield variant, lambda: measure_logits(model, vocabulary, options)
        else:
            yield variant, lambda v=variant: _train(model, tokenizer, v.title, vocabulary, options)  # type: ignore[misc]


def _train(model: Any, tokenizer: Any, title: str, vocabulary: int, options: argparse.Namespace) -> Numbers:
    """Train twice on the same rows with an unmodified SFTTrainer, and time the second epoch.

    Raises:
        RuntimeError: rows would be shuffled, or checkpointing is not as the variant says.
    """
    import numpy as np
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    cuda, checkpointed, rows = torch.cuda.is_available(), title == CHECKPOINTED, ROWS[title]
    if not checkpointed:  # the same as loading again without, in less time; the callback verifies it
        model.gradient_checkpointing_disable()
    model._unsloth_gradient_checkpointing = "unsloth" if checkpointed else False  # what its trainer goes by
    steps = max(1, options.rows // ROWS_PER_STEP)
    each = lengths(options)[: steps * ROWS_PER_STEP]
    random = np.random.default_rng(0)
    ids = [random.integers(3, vocabulary, n).tolist() for n in each]

    clock = _epoch_clock(model, steps, checkpointed)
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=output, per_device_train_batch_size=rows, max_steps=2 * steps,
                gradient_accumulation_steps=ROWS_PER_STEP // rows, report_to="none", save_strategy="no",
                logging_strategy="no", disable_tqdm=True, completion_only_loss=True, max_length=None,
                max_grad_norm=1.0, optim="adamw_8bit" if cuda else "adamw_torch", use_cpu=not cuda,
                train_sampling_strategy="sequential", gradient_checkpointing=checkpointed,
            ),
            train_dataset=Dataset.from_dict(
                {"input_ids": ids, "completion_mask": [[0] * (len(row) - 1) + [1] for row in ids]}
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        )  # fmt: skip
        sampler = trainer.get_train_dataloader().batch_sampler
        if not isinstance(getattr(sampler, "sampler", None), SequentialSampler):
            raise RuntimeError(f"rows are drawn by {sampler}, not in their order")
        reset_memory()
        trainer.train()
    began, warm, end = clock.times
    found = numbers(end - warm, sum(each), steps, warm - began)
    return {**found, "padding_free": bool(getattr(trainer, "padding_free", False))}


def _epoch_clock(model: Any, steps: int, checkpointed: bool) -> Any:
    """A callback whose ``times`` are the start of the training and the ends of both epochs of ``steps``.

    Raises:
        RuntimeError: in training, if checkpointing is not as ``checkpointed`` says.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._add()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if checkpointed != any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
                raise RuntimeError("unsloth switched checkpointing on or off by itself")
            if state.global_step in (steps, 2 * steps):
                self._add()

        def _add(self) -> None:
            synchronize()
            self.times.append(time.perf_counter())

    return Clock()


def plain_variants(name: str, _: argparse.Namespace) -> list[Variant]:
    """List the variants of transformers with PEFT."""
    return [
        Variant("training", "checkpointed", 0.25),
        Variant("scoring", "logits at every position", 0.35),
    ]


def plain(
    name: str, folder: Path, rank: int, variants: Sequence[Variant], options: argparse.Namespace
) -> Iterator[Measurement]:
    """Load transformers' model: bfloat16 weights, padded rows, logits at every position."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "eager" if name == "gemma2" else "sdpa"
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=kind)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    model: Any = get_peft_model(base.to(device), LoraConfig(r=rank, lora_alpha=rank, target_modules=LINEAR))
    vocabulary = shape(name, options)["vocab_size"]

    def train() -> Numbers:
        update = optimizer_step(model.train())

        def step(ids: Any) -> None:
            with torch.autocast(device, torch.bfloat16):
                labels = torch.full_like(ids, -100)
                labels[:, -1] = ANSWERS[0][0]
                model(input_ids=ids, labels=labels).loss.backward()
            update()

        # Each logit takes 16 bytes in training, so micro-batches are smaller than this project's.
        batches = [padded_ids(rows, vocabulary) for rows in micro_batches(options, options.tokens // 4)]
        return measure(step, batches, sum(lengths(options)))

    for variant in variants:
        training = variant.job == "training"
        yield variant, train if training else lambda: measure_logits(model, vocabulary, options)
