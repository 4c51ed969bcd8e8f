"""The fast decoder calls unsloth's kernels as they want to be called; Triton's interpreter runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Architecture

TESTS = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_unsloths_kernels_give_what_plain_pytorch_gives(architecture: Architecture, tmp_path: Path) -> None:
    switches = {
        "TRITON_INTERPRET": "1",
        "UNSLOTH_ALLOW_CPU": "1",
        "PYTHONPATH": os.pathsep.join(map(str, TESTS.parents[:2])),
    }
    command = [sys.executable, str(TESTS / "interpreted.py"), architecture, str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, **switches}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fused"] == ["apply_qkv", "apply_o", "forward"], "unsloth's names for what it fuses"
    for checkpointed, apart in found["distances"].items():
        assert len(apart) == 2 and max(apart) < 0.004, f"float16, {checkpointed} layers checkpointed"
