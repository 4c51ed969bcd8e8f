"""The GPU benchmark runs with tiny models on a CPU; the numbers mean nothing there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_step(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(tmp_path), "--models",
        "gemma2", "--ranks", "4", "--rows", "24", "--batches", "2", "--engines", "stock", "lmsys_unsloth",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (case,) = json.loads(next(tmp_path.glob("gpu-*.json")).read_text())["cases"]
    assert case["engines"].keys() == {"stock", "lmsys_unsloth"} and "failed" not in json.dumps(case), case
    assert case["engines"]["lmsys_unsloth"]["parity"]["hidden_states"] < 0.05
    assert "gemma2 | 4 | training | lmsys_unsloth" in next(tmp_path.glob("gpu-*.md")).read_text()
