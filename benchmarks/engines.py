"""The engines that the GPU benchmark compares: this project, stock unsloth, and transformers with PEFT.

An engine lists its variants, the most important ones first, and loads its model once to measure them.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from architectures import lengths, shape
from gpu_timing import Numbers, measure, micro_batches, optimizer_step, random_batch

ANSWERS = ((362,), (426,), (59,))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Variant:
    """One measurement."""

    job: str
    """``parity``, ``training`` or ``scoring``."""
    title: str
    share: float = 0.0
    """Expected share of the matrix-product rate; for ``--plan`` only."""
    seconds: float = 0.0
    """Expected seconds in addition to the computation, for compiling; for ``--plan`` only."""


Measurement = tuple[Variant, Callable[[], Numbers]]


def load(folder: Path, name: str, rank: int, checkpoint: str) -> tuple[Any, Any]:
    """Load a 4-bit model with adapters through this project's loader, and its tokenizer.

    ``checkpoint`` is ``all`` for unsloth's checkpointing of every layer, or ``none``.
    """
    from factories import lora_config, model_config, train_config

    from lmsys_unsloth.model import loading, trained_weights

    config = model_config(
        folder, name=name, load_in_4bit=True, resident="4bit", dtype="auto",
        max_seq_length=4096,
    )  # fmt: skip
    train = train_config(fast=checkpoint == "none", checkpoint=checkpoint)
    lora = lora_config(r=rank, alpha=float(rank), dropout=0.0, target_modules=LINEAR)
    tokenizer = loading.load_tokenizer(config)
    return trained_weights.make_trainable(loading.load_model(config, train), lora, train, seed=0), tokenizer


def token_limits(options: argparse.Namespace) -> list[int]:
    """Micro-batch sizes of this project, in tokens: the usual one, half of it and twice as much."""
    return [options.tokens, options.tokens // 2, options.tokens * 2]


def project_variants(name: str, options: argparse.Namespace) -> list[Variant]:
    """List this project's variants in the order in which they are measured."""
    usual, half, twice = token_limits(options)
    compiling = 45.0 if name == "gemma2" else 0.0
    fast = [
        Variant(job, f"fast, {weights}, {tokens:,} tokens", share)
        for weights, share in (("4-bit", 0.6), ("fp8", 0.8), ("dequantised once", 0.65))
        for job, tokens in (
            ("training", usual), ("scoring", usual), ("scoring", twice), ("training", half),
            ("training", twice),
        )
    ]  # fmt: skip
    return [
        Variant("parity", "short rows", seconds=5),
        Variant("parity", "mixed rows", seconds=3),
        Variant("parity", "mixed rows, fp8", seconds=3),
        *fast,
        Variant("training", f"all layers checkpointed, {usual:,} tokens", 0.5),
        Variant("training", f"lower half frozen, {usual:,} tokens", 0.9),
        Variant("training", f"reference decoder, padded, {half:,} tokens", 0.3, compiling),
        Variant("scoring", f"reference decoder, padded, {half:,} tokens", 0.4, compiling),
        Variant("scoring", f"adapters merged, {twice:,} tokens", 0.7),
    ]


def this_project(
    name: str, folder: Path, rank: int, variants: Sequence[Variant], options: argparse.Namespace
) -> Iterator[Measurement]:
    """Load this project's model, and yield the wanted variants with what measures them."""
    from factories import head_config

    from lmsys_unsloth.model import loading
    from lmsys_unsloth.model.answer_head import attach_head

    model, _ = load(folder, name, rank, "none")
    attach_head(model, head_config(), ANSWERS)
    vocabulary = shape(name, options)["vocab_size"]
    dequantised = False
    for variant in variants:
        if not dequantised and not variant.title.startswith(("fast, 4-bit", "fast, fp8", "short", "mixed")):
            loading.make_resident(model, "bf16")
            dequantised = True
        if variant.title.startswith("adapters merged"):
            _merge(model)
        if variant.job == "parity":
            yield variant, lambda v=variant: _parity(model, v, vocabulary, options)  # type: ignore[misc]
        else:
            yield variant, lambda v=variant: _speed(model, v, vocabulary, options)  # type: ignore[misc]


def _merge(model: Any) -> None:
    """Add the adapters to the dequantised weights, for good."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            (name,) = module.active_adapters
            module.base_layer.weight.data += module.get_delta_weight(name).to(module.base_layer.weight.dtype)
            module.enable_adapters(False)


def _speed(model: Any, variant: Variant, vocabulary: int, options: argparse.Namespace) -> Numbers:
    """Measure one variant of training or scoring."""
    from lmsys_unsloth.model import loading
    from lmsys_unsloth.model.decoder import FastDecoder
    from lmsys_unsloth.model.layers import fp8

    limit = next(n for n in token_limits(options) if variant.title.endswith(f" {n:,} tokens"))
    batches = [random_batch(rows, vocabulary) for rows in micro_batches(options, limit)]
    adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
    half = model.config.num_hidden_layers // 2
    for key, parameter in adapters.items():
        frozen = "frozen" in variant.title and any(f".layers.{layer}." in key for layer in range(half))
        parameter.requires_grad_(not frozen)
        parameter.grad = None
    decoder = loading.make_decoder(model, fast="reference" not in variant.title)
    if "checkpointed" in variant.title:
        assert isinstance(decoder, FastDecoder)
        decoder.checkpointed = len(decoder.layers)
    training = variant.job == "training"
    if "fp8" in variant.title:
        fp8.attach(decoder.layers, backward=training)  # type: ignore[attr-defined]
    model.train(training)
    step = _training_step(decoder) if training else _scoring_step(decoder)
    try:
        return measure(step, batches, sum(lengths(options)))
    finally:
        fp8.detach([model])


def _training_step(decoder: Any) -> Callable[[Any], None]:
    from factories import train_config

    from lmsys_unsloth.train.losses import answer_loss

    config, update = train_config(loss="answers"), optimizer_step(decoder.model)

    def step(batch: Any) -> None:
        answer_loss(decoder, batch, config).backward()
        update()

    return step


def _scoring_step(decoder: Any) -> Callable[[Any], None]:
    import torch

    from lmsys_unsloth.model.answer_head import answer_head

    def step(batch: Any) -> None:
        with torch.no_grad():
            answer_head(decoder.model).probabilities(decoder, batch)

    return step


def _parity(model: Any, variant: Variant, vocabulary: int, options: argparse.Namespace) -> Numbers:
    """Measure the distance between both decoders, and that between two perturbed runs of the reference.

    unsloth compiles Gemma 2's own forward pass, which takes most of a minute; here it is not compiled.
    """
    import torch

    from lmsys_unsloth.model import loading
    from lmsys_unsloth.model.decoder import ReferenceDecoder
    from lmsys_unsloth.model.layers import fp8
    from lmsys_unsloth.model.parity import parity_distances, perturbed, random_updates

    class NotCompiled(ReferenceDecoder):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            with torch.compiler.set_stance("force_eager"):
                return super().__call__(*arguments, **named)

    class Perturbed(NotCompiled):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            with perturbed(model):
                return super().__call__(*arguments, **named)

    each = sorted(lengths(options))
    # The reference keeps all attention logits of Gemma 2, so the longest rows do not fit.
    rows = each[:4] if variant.title == "short rows" else [each[len(each) * n // 6] for n in (0, 2, 4)]
    decoder, batch = loading.make_decoder(model, fast=True), random_batch(rows, vocabulary)
    model.eval()
    with contextlib.ExitStack() as stack:
        stack.enter_context(random_updates(model))
        if "fp8" in variant.title:
            stack.callback(fp8.detach, [model])
            fp8.attach(decoder.layers, backward=True)  # type: ignore[attr-defined]
        pairs = [
            parity_distances(each, NotCompiled(model), batch, gradients=True)
            for each in (decoder, Perturbed(model))
        ]
    (states, gradients), (by_rounding, gradients_by_rounding) = pairs
    return {
        "hidden_states": states, "gradients": gradients,
        "by_rounding": by_rounding, "gradients_by_rounding": gradients_by_rounding,
    }  # fmt: skip
