"""A training that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tiny import save_tiny_llama

from lmsys_unsloth.config.run_directory import Run

pytestmark = pytest.mark.slow

KILLS = Path(__file__).with_name("kills.py")


def result(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    probabilities = pd.read_parquet(run.predictions)[["p_a", "p_b", "p_tie"]].to_numpy()
    return {
        "curve": [(e["step"], e.get("loss", e.get("early_stopping_loss"))) for e in run.learning_curve()],
        "weights": load_file(run.adapter / "adapter_model.safetensors"),
        "probabilities": probabilities,
        "steps": run.training_description()["steps"],
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_training_killed_at_any_moment_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, str(KILLS), str(tmp_path), str(model)], capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not any(attempt["failed"] for attempt in found["attempts"]), done.stderr[-3000:]
    # Of the 40 kills, those that a resumed run ends before are not reached.
    assert sum(attempt["killed"] for attempt in found["attempts"]) >= 20, found["attempts"]
    expected = result(tmp_path / "undisturbed")
    assert expected["steps"] == 6
    for number in range(found["runs"]):
        run = tmp_path / f"run{number}"
        again = result(run)
        assert [step for step, _ in again["curve"]] == [step for step, _ in expected["curve"]]
        np.testing.assert_allclose(
            [loss for _, loss in again["curve"]], [loss for _, loss in expected["curve"]], atol=1e-6
        )
        assert again["weights"].keys() == expected["weights"].keys()
        for name, weight in again["weights"].items():
            np.testing.assert_allclose(weight, expected["weights"][name], atol=1e-6)
        np.testing.assert_allclose(again["probabilities"], expected["probabilities"], atol=1e-6)
