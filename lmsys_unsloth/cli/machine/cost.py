"""What a training or a scoring will cost in time, estimated before it begins.

The operations of products with the model's own matrices are counted for each token, and divided by the rate
of such products on this machine, which is measured for a moment. What else a step does is estimated from the
same operations: on a GPU by the share of that rate which whole steps achieved where this was measured, on a
CPU by a multiple of the time of float32 products, because instructions for bfloat16 do not make it faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lmsys_unsloth.cli.machine.speed import product_rate
from lmsys_unsloth.config.durations import in_words
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core import ranks
from lmsys_unsloth.model.families.known import family_of
from lmsys_unsloth.model.memory import projection_shapes
from lmsys_unsloth.prompting.encoded_rows import token_counts
from lmsys_unsloth.prompting.prepared import Prepared

GPU_SHARE = {"training": 0.6, "scoring": 0.7}
"""Share of the product's rate that the fast decoder achieves (docs/performance.md: 62 to 64% and 73%)."""

CPU_REST = {"training": 0.45, "scoring": 0.3}
"""Time of everything but the products, in times of that of float32 products. ``benchmarks/cpu_share.py`` on
one core: 0.63 and 0.44 (Intel Xeon with AMX), 0.28 and 0.17 (AMD EPYC without AMX, if its rate in float32 was
half of that in bfloat16)."""

SLOWER = 1.4
"""Time of the model's own forward pass on padded batches, in times of the fast decoder's."""

Job = Literal["training", "scoring"]
Shape = Mapping[str, Any]
"""A model's ``config.json``."""


@dataclass(frozen=True)
class _Speed:
    """Operations per second of products in the model's type and, on a CPU, in float32; of all ranks."""

    products: float
    rest: float | None
    slower: float

    @classmethod
    def measure(cls, config: Config, shape: Shape) -> _Speed:
        size = shape["hidden_size"], shape["intermediate_size"]
        fast = family_of(shape) is not None and config.train.fast
        of_cpu = None if torch.cuda.is_available() else product_rate(*size, torch.float32)
        own = product_rate(*size, _dtype(config))
        together = ranks.current().size
        return cls(own * together, of_cpu and of_cpu * together, 1.0 if fast else SLOWER)

    def seconds(self, job: Job, operations: float) -> float:
        if self.rest is None:
            return self.slower * operations / (GPU_SHARE[job] * self.products)
        return self.slower * operations * (1 / self.products + CPU_REST[job] / self.rest)


def describe_cost(config: Config, shape: Shape, prepared: Prepared) -> str | None:
    """One line: rows, tokens, and about how long they will take; None for a model of unknown shape.

    Args:
        config: of the run.
        shape: ``config.json`` of its model.
        prepared: the encoded rows.
    """
    if not {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"} <= shape.keys():
        return None
    speed = _Speed.measure(config, shape)
    parts = []
    if len(prepared.train):
        parts.append(_training(config, shape, prepared, speed))
    tokens = sum(token_counts(prepared.scored)) * _passes(config)
    seconds = speed.seconds("scoring", tokens * scoring_operations(shape))
    parts.append(f"{len(prepared.scored):,} rows to score ({_million(tokens)} tokens): {roughly(seconds)}")
    return f"estimated time here: {'; '.join(parts)}; loading and the report come on top"


def _training(config: Config, shape: Shape, prepared: Prepared, speed: _Speed) -> str:
    train, lengths = config.train, token_counts(prepared.train)
    rows = len(lengths) * train.epochs
    if train.max_steps is not None:
        rows = min(rows, train.max_steps * train.rows_per_step)
    tokens = round(rows * sum(lengths) / len(lengths))
    seconds = speed.seconds("training", tokens * training_operations(config, shape))
    if train.evaluate_every is not None:
        evaluations = rows // (train.rows_per_step * train.evaluate_every) + 1
        evaluated = evaluations * sum(token_counts(prepared.early_stopping))
        seconds += speed.seconds("scoring", evaluated * scoring_operations(shape))
    text = f"{len(lengths):,} rows to train on, {_million(tokens)} tokens in {train.epochs} "
    text += "epoch" if train.epochs == 1 else "epochs"
    text += "" if rows == len(lengths) * train.epochs else f", stopped after {train.max_steps} steps"
    if train.time_budget is not None and seconds > train.time_budget:
        return f"{text}: {roughly(seconds)}, of which train.time_budget allows {in_words(train.time_budget)}"
    return f"{text}: {roughly(seconds)}"


def scoring_operations(shape: Shape) -> int:
    """Operations of a forward pass for each token, in the model's own matrices.

    Of the last layer, hardly anything is computed at every token.
    """
    return int(2 * (shape["num_hidden_layers"] - 1) * _layer_weights(shape))


def training_operations(config: Config, shape: Shape) -> int:
    """Operations of a training step for each token, in the model's own matrices.

    Forward, one product with each matrix; backward one more in layers with adapters, and two where the
    matrices themselves are trained; a further one where activations are recomputed. Frozen layers below
    run forward only, once for all epochs.
    """
    layer, depth = _layer_weights(shape), int(shape["num_hidden_layers"])
    frozen = min(config.lora.first_layer, depth - 1)
    passes = 1 + (2 if config.lora.kind == "full" else 1) + (config.train.checkpoint == "all")
    return 2 * layer * ((depth - 1 - frozen) * passes + round(frozen / config.train.epochs))


def _layer_weights(shape: Shape) -> int:
    return sum(inputs * outputs for inputs, outputs in projection_shapes(shape).values())


def _passes(config: Config) -> float:
    """How often each row is scored."""
    swap = config.eval.swap
    return 2.0 if swap == "average" else 1.0 + (config.eval.swap_share if swap == "uncertain" else 0.0)


def _dtype(config: Config) -> torch.dtype:
    if config.model.dtype != "auto":
        return torch.float32 if config.model.dtype == "float32" else torch.bfloat16
    old_gpu = torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    return torch.float16 if old_gpu else torch.bfloat16


def _million(tokens: float) -> str:
    return f"{tokens / 1e6:,.1f} M" if tokens >= 1e5 else f"{tokens:,.0f}"


def roughly(seconds: float) -> str:
    """A duration as precise as an estimate.

    >>> [roughly(seconds) for seconds in (3, 47, 500, 4100, 100000)]
    ['a few seconds', 'about 50 s', 'about 8 min', 'about 1 h 10 min', 'about 28 h']
    """
    if seconds < 10:
        return "a few seconds"
    if seconds < 95:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 3600:
        return f"about {seconds / 60:.0f} min"
    if seconds < 36000:
        hours, minutes = divmod(round(seconds / 60, -1), 60)
        return f"about {hours:.0f} h {minutes:.0f} min"
    return f"about {seconds / 3600:.0f} h"
