"""Fixtures of the tests of reports and tracking."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    with_columns,
    with_swap,
)

if TYPE_CHECKING:
    from lmsys_unsloth.report.results import Outcome


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the wandb login and settings of the user who runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


@pytest.fixture(scope="session")
def _evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Outcome]:
    from lmsys_unsloth.data.form.features import form_features
    from lmsys_unsloth.evaluate.adjustment import adjust_out_of_fold
    from lmsys_unsloth.evaluate.scores import ScoringSpeed
    from lmsys_unsloth.report.results import report_results

    random = np.random.default_rng(0)
    rows = [
        Comparison(id=f"row {k}", prompts=("q",), responses_a=("<b>x</b>",), responses_b=("y",), label=k % 3)
        for k in range(30)
    ]
    scored = Predictions(
        [row.id for row in rows],
        np.zeros(30, np.int64),
        random.dirichlet(np.ones(3), 30).astype(np.float32),
        np.array([row.label for row in rows]),
    )
    both = with_swap(scored, scored.probabilities[:, [1, 0, 2]])
    run = Run(tmp_path_factory.mktemp("evaluated") / "RUN")
    run.describe(config(), "python train.py")
    speed = ScoringSpeed(seconds=30.0, rows_per_second=1.0, tokens_per_second=5.0, peak_memory_gb=1.0)
    regression = random.dirichlet(np.ones(3), 30)
    candidates = adjust_out_of_fold(both, form_features(rows), regression)
    for names in (BASELINE_COLUMNS, FORM_COLUMNS):
        both = with_columns(both, names, regression)
    outcome = report_results(run, config(), both, rows, candidates=candidates, scoring=speed)
    return run, outcome


@pytest.fixture
def evaluation(_evaluated: tuple[Run, Outcome], tmp_path: Path) -> tuple[Run, Outcome]:
    """A small evaluation: a run directory with an adapter, metrics, report and plots, and its outcome."""
    run = Run(tmp_path / "RUN")
    shutil.copytree(_evaluated[0].path, run.path)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return run, _evaluated[1]
