"""Compare scales of the model's logits beside the regression on form, on stored predictions: seconds.

    python benchmarks/logit_scale.py OUT/*/offset/0-1 [--half-rows 0,200,600]

Names runs of ``benchmarks/study.py`` that were trained with ``head.offset=form`` and scored in both orders of
the responses. The logits of a model trained on n rows are multiplied by n / (n + half rows): 0 leaves them
as they are. *Form* is the regression alone. Log losses are means over the named runs of a data set; the last
line is the mean of the others.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

from heading import heading
from scipy.special import softmax
from study_runs import read_record

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.arrays import Floats
from lmsys_unsloth.data.trained_rows import load_trained_rows
from lmsys_unsloth.evaluate.calibration import EPSILON, log_losses
from lmsys_unsloth.evaluate.predictions import FORM_COLUMNS, read_predictions, stored_columns, swap_views


def score(run: Run, half_rows: Sequence[float]) -> tuple[int, list[float]]:
    """Rows trained on; log losses of the form alone, with each scale, and with the best scale of 0 to 1.5."""
    predicted = read_predictions(run.predictions)
    form, orders = stored_columns(predicted, FORM_COLUMNS), swap_views(predicted)
    if form is None or orders is None or len(orders[0]) < len(predicted):
        sys.exit(f"{run.path}: must be a run scored in both orders (eval.swap=average)")
    applied = json.loads(run.training.read_text(encoding="utf-8")).get("logit_scale", 1.0)
    offset = np.log(form.clip(EPSILON))
    learned = [(np.log(each.clip(EPSILON)) - offset) / applied for each in orders]
    rows = len(load_trained_rows([run.training_rows]).prompts)

    def loss(scale: float) -> float:
        found: Floats = np.mean([softmax(offset + scale * each, axis=1) for each in learned], axis=0)
        return float(log_losses(found, predicted.labels).mean())

    best = min(map(loss, np.linspace(0, 1.5, 31)))
    return rows, [loss(0.0), *(loss(rows / (rows + half)) for half in half_rows), best]


def main(words: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of a study")
    parser.add_argument(
        "--half-rows", type=lambda text: [float(part) for part in text.split(",")], metavar="N,…",
        default=[0.0, 200.0, 400.0, 600.0, 1000.0], help="rows with which the logits count half",
    )  # fmt: skip
    options = parser.parse_args(words)
    sets: dict[str, list[tuple[int, list[float]]]] = {}
    for folder in options.runs:
        record = read_record(folder)
        if record is None:
            sys.exit(f"{folder}: is no run of benchmarks/study.py")
        sets.setdefault(record[0].data_set, []).append(score(Run(folder), options.half_rows))
    command = (
        f"python benchmarks/logit_scale.py {shlex.join('/'.join(run.parts[-3:]) for run in options.runs)}"
    )
    print(heading("Scales of the model's logits", command))
    print(
        f"| data | runs | rows trained on | form | {' | '.join(f'{n:g}' for n in options.half_rows)} | best |"
    )
    print("|---" * (len(options.half_rows) + 5) + "|")
    means = []
    for name, scored in sets.items():
        means.append(np.mean([losses for _, losses in scored], axis=0))
        cells = " | ".join(f"{value:.4f}" for value in means[-1])
        print(f"| {name} | {len(scored)} | {np.mean([rows for rows, _ in scored]):,.0f} | {cells} |")
    print(f"| mean | | | {' | '.join(f'{value:.4f}' for value in np.mean(means, axis=0))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
