"""The report names the teacher, the earlier stages and the extra rows of a training, as data.json does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.metrics import score_predictions
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.report import page, plots

TEACHER = {
    "source": "TEACHER", "weight": 0.7, "rows": 1200, "rows_without_own_label": 0,
    "predicted_by": "cross-validation", "runs": ["TEACHER_0", "TEACHER_1"], "warnings": [],
}  # fmt: skip
EXTRA = {"source": "pseudo<b>.csv", "rows": 90, "used": 80, "soft_labels": 75}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The report of a run with this ``data.json``."""
    monkeypatch.setattr(plots, "plot_all", lambda *_: {})
    rows = [Comparison(str(k), ("q",), ("x",), ("y",), label=k % 3) for k in range(30)]
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 30).astype(np.float32)
    predicted = Predictions([r.id for r in rows], np.zeros(30, np.int64), p, np.arange(30) % 3)

    def write(**data: object) -> str:
        run = Run(tmp_path)
        run.data.write_text(json.dumps(data))
        page.write_report(run, score_predictions(predicted), predicted, rows)
        return run.report.read_text(encoding="utf-8")

    return write


def test_teacher_stages_and_pseudo_labels_are_in_the_report(report):
    html = report(teacher=TEACHER, stages=["STAGE_1", "STAGE_2"], extra=[EXTRA])
    assert "Earlier runs and extra rows" in html
    assert "out-of-fold predictions of a cross-validation, with weight 0.7 in the targets of 1,200" in html
    assert all(name in html for name in ("TEACHER_0", "TEACHER_1", "1. STAGE_1", "2. STAGE_2"))
    assert "80 of 90 rows" in html and "75 of them with soft labels" in html and "pseudo&lt;b&gt;.csv" in html


def test_a_training_on_its_own_data_alone_has_no_such_section(report):
    assert "Earlier runs and extra rows" not in report(extra=[])


def test_doubts_about_a_teacher_are_findings(report):
    html = report(teacher={**TEACHER, "predicted_by": "unknown", "warnings": ["may be too optimistic"]})
    assert '<p class="callout">may be too optimistic</p>' in html and "of unknown origin" in html


def test_earlier_runs_without_a_count_of_soft_labels_are_described_too(report):
    html = report(extra=[{"source": "old.csv", "rows": 9, "used": 9}])
    assert "9 of 9 rows" in html and "with soft labels" not in html
