"""A short measurement of the rate at which this machine multiplies matrices."""

from __future__ import annotations

import time

import torch

SECONDS = 0.2
"""Duration of one measurement, after one product that warms up."""


def product_rate(width: int, inner: int, dtype: torch.dtype) -> float:
    """Measure floating-point operations per second of the product of hidden states with a layer's matrix.

    Args:
        width, inner: size of the matrix; that of a real layer, as small products are slower.
        dtype: of both factors.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = 8192 if device.type == "cuda" else 640
    states = torch.randn(tokens, width, device=device).to(dtype)
    matrix = torch.randn(width, inner, device=device).to(dtype)

    def multiply(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(states, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    multiply(1)
    count = max(1, min(1000, int(SECONDS / max(multiply(1), 1e-9))))
    return 2 * count * states.numel() * inner / multiply(count)
