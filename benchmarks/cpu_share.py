"""Share of the machine's matrix-product rate that steps of this project achieve on a CPU.

    python benchmarks/cpu_share.py --data train.csv     # without --data, simulated rows
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/cpu_share.py     # as if a machine had no AMX
    OMP_NUM_THREADS=1 python benchmarks/cpu_share.py    # on one core

Training and scoring steps of 8 rows of SmolLM2 (LoRA r=16 on all linear layers), of the median length of the
data and of 290 tokens, take turns with a bfloat16 product of 640 tokens with a matrix of an MLP.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

from cpu import ROWS_PER_STEP, encoded_rows, settings

PRODUCTS = 50
"""Number of products timed before and after each step."""


def measure_shares(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure steps of the fast decoder in turn with a product of the machine, at two lengths of rows.

    Returns:
        For each job and length: tokens per row, seconds of a step, rate of the product in operations per
        second, and share: the operations of the step's products with frozen matrices, without those of
        adapters and attention, divided by what the machine computes in that time at that rate.
    """
    import numpy as np
    import torch

    from lmsys_unsloth.model import loading, trained_weights
    from lmsys_unsloth.model.answer_head import attach_head
    from lmsys_unsloth.model.batch import collate
    from lmsys_unsloth.model.decoder import FastDecoder
    from lmsys_unsloth.train.losses import answer_loss

    config = settings(options)
    _, encoder, rows = encoded_rows(options, config)
    model = loading.load_model(config.model, config.train)
    model = trained_weights.make_trainable(model, config.lora, config.train, seed=0)
    head = attach_head(model, config.head, encoder.answer_ids)
    decoder = FastDecoder(model.train())
    real = sorted((row.input_ids for row in rows), key=len)
    real = real[(len(real) - ROWS_PER_STEP) // 2 :][:ROWS_PER_STEP]
    text = np.concatenate([row.input_ids for row in rows])
    long = [np.resize(text[start:], 290) for start in range(ROWS_PER_STEP)]
    targets = [(1.0, 0.0, 0.0)] * ROWS_PER_STEP
    size = decoder.config.hidden_size, decoder.config.intermediate_size
    left, right = torch.randn(640, size[0]).bfloat16(), torch.randn(size[0], size[1]).bfloat16()

    def train(batch: Any) -> None:
        model.zero_grad()
        answer_loss(decoder, batch, config.train).backward()

    def score(batch: Any) -> None:
        with torch.inference_mode():
            head.probabilities(decoder, batch)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    found: dict[str, dict[str, float]] = {}
    for job, run in (("training", train), ("scoring", score)):
        for name, ids in (("the data's rows", real), ("long rows", long)):
            batch = collate(ids, targets)
            tokens = sum(batch.lengths)
            operations = frozen_operations(decoder.config.to_dict(), tokens, backward=job == "training")
            seconds, rate = _in_turn(functools.partial(run, batch), multiply, options.steps)
            rate *= 2 * left.numel() * size[1]
            found[f"{job}, {name}"] = {
                "tokens": tokens / ROWS_PER_STEP, "seconds": seconds, "rate": rate,
                "share": operations / seconds / rate,
            }  # fmt: skip
    return found


def _in_turn(step: Callable[[], None], multiply: Callable[[], None], steps: int) -> tuple[float, float]:
    """Time steps and products in turn; return the medians of a step's seconds and of products per second."""
    step()  # warms up
    seconds, rates = [], []
    for _ in range(steps):
        before, one, after = _seconds(multiply), _seconds(step), _seconds(multiply)
        seconds.append(one)
        rates.append(2 * PRODUCTS / (before + after))
    return statistics.median(seconds), statistics.median(rates)


def _seconds(run: Callable[[], None]) -> float:
    """Measure by the clock; with one thread in processor time, which other jobs disturb less."""
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    run()
    return clock() - started


def frozen_operations(config: dict[str, Any], tokens: int, backward: bool) -> int:
    """Count the operations of products with frozen matrices, all layers adapted.

    Of the last layer only keys and values are computed everywhere, and the first layer's input needs no
    gradient.
    """
    from lmsys_unsloth.model.memory import projection_shapes

    weights = {name: inputs * outputs for name, (inputs, outputs) in projection_shapes(config).items()}
    key_value = weights["k_proj"] + weights["v_proj"]
    forward = (config["num_hidden_layers"] - 1) * sum(weights.values()) + key_value
    return 2 * tokens * (forward + backward * (forward - weights["q_proj"] - key_value))


def share_table(found: dict[str, dict[str, float]], threads: int) -> str:
    """Return the measured shares as Markdown."""
    instructions = os.environ.get("ONEDNN_MAX_CPU_ISA", "all of the machine's instructions")
    lines = [
        f"Share of the rate of a bfloat16 product measured in turn with the steps, {threads} thread(s), "
        f"{instructions}.\nOnly products with frozen matrices count as operations of a step.\n",
        "| step of 8 rows | tokens per row | tokens/s | GFLOP/s of the product | share |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        speed = ROWS_PER_STEP * one["tokens"] / one["seconds"]
        rate = one["rate"] / 1e9
        lines.append(f"| {name} | {one['tokens']:.0f} | {speed:.0f} | {rate:.0f} | {one['share']:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", help="rows in any layout that data.path takes; default: simulated rows")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=7, help="steps of each kind; medians are printed")
    options = parser.parse_args()
    options.one, options.job, options.train_rows = "default", "train", 64
    found = measure_shares(options)
    import torch

    print(share_table(found, torch.get_num_threads()))


if __name__ == "__main__":
    main()
