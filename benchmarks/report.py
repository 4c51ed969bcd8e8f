"""Measure how long all metrics and the report take for stored predictions of 57,477 rows.

    python benchmarks/report.py            # as many rows as LMSYS's train.csv
    python benchmarks/report.py --rows 5000

The rows are simulated in full length. The predictions are the true probabilities with noise on the logits, in
five folds and for both orders. The measured part runs in its own process, so that its peak memory is its own.
Writes ``benchmarks/results/report-DATE.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.special import softmax

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from heading import heading

LIMIT_SECONDS, LIMIT_GIB = 60, 2.0
"""Time and peak memory that the measured part should stay below."""


def prepare(folder: Path, rows: int) -> None:
    """Write ``arena.csv`` and ``predictions.parquet`` as a cross-validation over all rows would."""
    from lmsys_unsloth.data.arena import simulate
    from lmsys_unsloth.evaluate import predictions

    settings = [f"rows={rows}", "length=full", f"out={folder / 'arena.csv'}"]
    subprocess.run([sys.executable, "-m", "lmsys_unsloth.simulate", *settings], cwd=ROOT, check=True)
    arena = simulate(rows, 0, "full")
    random = np.random.default_rng(0)

    truth = np.array([row.true_probabilities for row in arena])

    def noisy() -> np.ndarray:
        return softmax(np.log(truth) + random.normal(0, 0.4, truth.shape), axis=1)

    predicted = predictions.Predictions(
        [row.id for row in arena],
        np.arange(rows) % 5,
        noisy().astype(np.float32),
        np.array([row.label for row in arena]),
        {
            "group": [str(hash(row.prompts)) for row in arena],
            "share_cut": random.choice([0.0, 0.2, 0.7], rows).tolist(),
        },
    )
    both = predictions.with_swap(predicted, noisy()[:, [1, 0, 2]])
    predictions.write_predictions(folder / "predictions.parquet", both)


def measure(folder: Path) -> None:
    """Print the seconds of each part, and this process's peak memory, as JSON."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with timed("import"):
        from lmsys_unsloth.config.run_directory import Run
        from lmsys_unsloth.core.files import write_json
        from lmsys_unsloth.data import sources
        from lmsys_unsloth.data.comparison import label_array
        from lmsys_unsloth.data.form.features import form_features
        from lmsys_unsloth.evaluate import baselines, metrics, predictions
        from lmsys_unsloth.report import page
    with timed("read the rows' texts (CSV)"):
        source = sources.read_source(
            str(folder / "arena.csv"), layout="auto", split="train", soft_labels=False
        )
        rows = source.rows
    text_mb = sum(sum(map(len, r.prompts + r.responses_a + r.responses_b)) for r in rows) / 1e6
    with timed("read predictions.parquet"):
        predicted = predictions.read_predictions(folder / "predictions.parquet")
    with timed("logistic regression, 5 folds"):
        features, labels = form_features(rows), label_array(rows)
        baseline = baselines.predict_parts(features, labels, predicted.folds, baselines.fit_baseline)
        predicted = predictions.with_columns(predicted, predictions.BASELINE_COLUMNS, baseline)
    with timed("all metrics"):
        result = metrics.score_predictions(predicted)
    run = Run(folder)
    write_json(
        run.training,
        {"learning_curve": [{"step": i, "loss": 1.1 - i / 5000, "learning_rate": 2e-4} for i in range(3000)]},
    )
    with timed("slices, figures, report.html"):
        page.write_report(run, result, predicted, rows)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "rows": len(rows),
                "text_mb": text_mb,
                "html_mb": run.report.stat().st_size / 1e6,
                "log_loss": result.score.log_loss,
            }
        )
    )


def written(found: dict, command: str) -> str:
    """The measurement as Markdown."""
    total = sum(found["seconds"].values())
    lines = [f"| {name} | {value:.1f} |" for name, value in found["seconds"].items()]
    return "\n".join(
        [
            heading("Metrics and report of stored predictions", command),
            f"{found['rows']:,} full-length rows ({found['text_mb']:.0f} MB of text), scored in both orders.",
            "",
            "| part | seconds |",
            "|---|---|",
            *lines,
            f"| **total** | **{total:.1f}** (target: under {LIMIT_SECONDS}) |",
            "",
            f"Peak memory {found['peak_gib']:.2f} GiB (target: under {LIMIT_GIB:.0f} GiB). "
            f"report.html: {found['html_mb']:.1f} MB.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=57_477)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.rows)
        answer = subprocess.run(
            [sys.executable, __file__, "--measure", folder], capture_output=True, text=True, check=True
        )
    text = written(
        json.loads(answer.stdout.splitlines()[-1]), f"python benchmarks/report.py --rows {arguments.rows}"
    )
    print(text)
    (ROOT / "benchmarks" / "results" / f"report-{datetime.date.today()}.md").write_text(
        text, encoding="utf-8"
    )


if __name__ == "__main__":
    main()
