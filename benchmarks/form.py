"""Compare the two regressions on the form of the responses, without a language model: seconds for each file.

    python benchmarks/form.py FILE [FILE …]           # the folds of data.folds=5 of preference files
    python benchmarks/form.py --arena 0,2,3           # fold 0 of the simulated arena with these seeds

The first is the baseline of every report (twelve features), the second that of head.offset and eval.stack.
Differences are paired by row; intervals resample groups of prompts.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

from factories import config
from heading import heading

from lmsys_unsloth.data.comparison import label_array
from lmsys_unsloth.data.dataset import FoldData, load_fold
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.data.form.regression import class_prior, fit_form
from lmsys_unsloth.evaluate.baselines import fit_baseline
from lmsys_unsloth.evaluate.bootstrap import cluster_numbers, paired_bootstrap
from lmsys_unsloth.evaluate.calibration import log_losses
from lmsys_unsloth.report.score_table import format_difference


def compare(folds: Sequence[FoldData]) -> str:
    """Rows, prompts and log losses of class prior, baseline and form regression, as cells of a table."""
    losses, groups = [], []
    for number, fold in enumerate(folds):
        train, labels = form_features(fold.train), label_array(fold.train)
        scored, known = form_features(fold.validation), label_array(fold.validation)
        predicted = (
            np.tile(class_prior(labels), (len(known), 1)),
            fit_baseline(train, labels).predict_form(scored),
            fit_form(train, labels).predict_form(scored),
        )
        losses.append([log_losses(each, known) for each in predicted])
        groups += [f"{number} {group}" for group in fold.groups]
    prior, baseline, form = np.concatenate(losses, axis=1)
    pair = paired_bootstrap(form, baseline, cluster_numbers(groups, len(form)))
    means = (f"{each.mean():.3f}" for each in (prior, baseline, form))
    return " | ".join([f"{len(form):,}", str(len(set(groups))), *means, format_difference(pair)])


def tables(files: Sequence[Path], seeds: Sequence[int], folds: Sequence[int]) -> Iterator[str]:
    """Yield a line for each file and each seed of the arena."""
    for file in files:
        data = config("data=lmsys", f"data.path={file}").data
        yield f"| {file.name} | {compare([load_fold(data, fold) for fold in folds])} |"
    for seed in seeds:
        yield f"| arena, seed {seed} | {compare([load_fold(config(f'data.seed={seed}').data, 0)])} |"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(words: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="labelled preference files")
    parser.add_argument("--arena", type=_numbers, default=[], help="comma-separated seeds of the arena")
    parser.add_argument("--folds", type=_numbers, default=[0, 1, 2, 3, 4], help="folds of the files to score")
    options = parser.parse_args(words)
    if not options.files and not options.arena:
        parser.error("name a FILE, or seeds with --arena")
    given = sys.argv[1:] if words is None else words
    names = [Path(word).name if Path(word).is_file() else word for word in given]
    print(heading("Regressions on form", f"python benchmarks/form.py {shlex.join(names)}"))
    print("| data | rows | prompts | class prior | baseline | regression on form | − baseline |")
    print("|---|---|---|---|---|---|---|")
    for line in tables(options.files, options.arena, options.folds):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
