"""The fast decoder calls unsloth's kernels correctly; Triton's interpreter runs them without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import Architecture, tolerance

TESTS = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")
@pytest.mark.parametrize(("architecture", "weights"), [("llama", "4bit"), ("gemma2", "16bit")])
def test_unsloths_kernels_give_what_plain_pytorch_gives(
    architecture: Architecture, weights: str, tmp_path: Path
) -> None:
    switches = {
        "TRITON_INTERPRET": "1",
        "UNSLOTH_ALLOW_CPU": "1",
        "PYTHONPATH": os.pathsep.join(map(str, TESTS.parents[:2])),
    }
    command = [sys.executable, str(TESTS / "interpreted.py"), architecture, str(tmp_path), weights]
    done = subprocess.run(
        command, env={**os.environ, **switches}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Three layers, once each for outputs and gradients; then two of them again in the backward pass.
    gated = "silu" if architecture == "llama" else "gelu_pytorch_tanh"
    calls = found["calls"]
    assert calls.pop(f"{gated} forward") == 3 + 3 + 2 and calls.pop(f"{gated} backward") == 3 + 3
    assert calls.pop("rope") > 0 and calls.pop("rms_norm") > 0
    assert (calls.pop("dequantize") > 0) == (weights == "4bit")
    assert set(calls.values()) == {0}, "kernels of the other activation"
    assert found["weights"] == ("torch.uint8" if weights == "4bit" else "torch.float16")
    assert found["fp8"]["scales"] < 2 * torch.finfo(torch.float32).eps
    # The interpreter rounds up to a power of two as to half of it; tests/gpu compares every value.
    assert found["fp8"]["values"] <= 0.5
    # Hidden states and gradients in float16 with sums in float32: what is stored is rounded, layer by layer.
    rounding = tolerance(torch.float16, terms=1, products=1)
    for checkpointed, distances in found["distances"].items():
        assert len(distances) == 2 and max(distances) < rounding, f"{checkpointed} layers checkpointed"
