"""Measurements of the GPU benchmark: every batch runs once untimed, then all of them by the clock."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from architectures import lengths

Numbers = dict[str, Any]


def matmul_rate() -> float:
    """Measure bfloat16 floating-point operations per second of a product of two 8192 × 8192 matrices."""
    import torch

    size = 8192 if torch.cuda.is_available() else 512
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = timed(lambda: [a @ b for _ in range(10)])
    return 10 * 2 * size**3 / seconds


def synchronize() -> None:
    """Wait for the GPU's work, if there is a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that ``run()`` takes, including the GPU's work."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def reset_memory() -> None:
    """Free what earlier variants left and start measuring the peak anew."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(step: Callable[[Any], Any], batches: Sequence[Any], tokens: int) -> Numbers:
    """Run ``step`` over all batches twice, and time the second pass.

    The first pass allocates memory for every shape and chooses or compiles kernels, which would otherwise be
    measured too.

    Args:
        step: trains or scores one batch.
        batches: complete batches on the device.
        tokens: number of tokens of all batches together, without padding.
    """
    reset_memory()
    warm_up = timed(lambda: [step(batch) for batch in batches])
    return numbers(timed(lambda: [step(batch) for batch in batches]), tokens, len(batches), warm_up)


def numbers(seconds: float, tokens: int, steps: int, warm_up: float) -> Numbers:
    """Return what is recorded of a timed pass over all batches."""
    from lmsys_unsloth.model import memory

    return {
        "tokens_per_second": tokens / seconds,
        "ms_per_step": 1000 * seconds / steps,
        "steps": steps,
        "warm_up_seconds": warm_up,
        "peak_gb": memory.peak_gb(),
    }


def micro_batches(options: argparse.Namespace, tokens: int) -> list[list[int]]:
    """Group all row lengths into micro-batches of similar lengths, in random order."""
    import numpy as np

    from lmsys_unsloth.model.batch import by_length

    each = lengths(options)
    batches = [[each[row] for row in rows] for rows in by_length(each, tokens)]
    order = np.random.default_rng(1).permutation(len(batches))
    return [batches[i] for i in order]


def random_batch(row_lengths: Sequence[int], vocabulary: int) -> Any:
    """Return rows of the given lengths with random ids, on the device."""
    import numpy as np
    import torch

    from lmsys_unsloth.model.batch import collate

    random = np.random.default_rng(sum(row_lengths))
    rows = [random.integers(3, vocabulary, n) for n in row_lengths]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return collate(rows, np.eye(3)[random.integers(0, 3, len(row_lengths))]).to(device)


def padded_ids(row_lengths: Sequence[int], vocabulary: int) -> Any:
    """Return random rows of the given lengths ``[rows, longest]``, padded on the right, on the device."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = random_batch(row_lengths, vocabulary)
    return pad_sequence(list(torch.split(rows.input_ids, list(rows.lengths))), batch_first=True)


def measure_logits(model: Any, vocabulary: int, options: argparse.Namespace) -> Numbers:
    """Score as the libraries' own evaluation does: the LM head at every position of padded rows."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def score(ids: Any) -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            model(input_ids=ids).logits[:, -1].float()

    # Logits of a whole batch are large, so batches are smaller than this project's.
    model.eval()
    batches = [padded_ids(rows, vocabulary) for rows in micro_batches(options, options.tokens // 2)]
    return measure(score, batches, sum(lengths(options)))


def optimizer_step(model: Any) -> Callable[[], None]:
    """Return a function that clips the gradients of the trained weights, updates them and forgets them."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update
