"""Train and compare the variants of a recipe (arms) that ``study.yaml`` lists, on several data sets.

    python benchmarks/study.py run --sets arena,tulu --arms base,rank_4 --seeds 0,1 --data DIR --output OUT
    python benchmarks/study.py report OUT

``run`` starts ``python train.py`` once for each data set, seed, fold and arm; OUT/SET/ARM/SEED-FOLD is the
run directory. An arm with a teacher is trained on its out-of-fold predictions: those of all folds of another
arm, which are trained first and merged in OUT/SET/TEACHER/SEED-folds. Finished runs are skipped, so an
interrupted study continues when the command is repeated. A failed run is recorded, and the others go on.
``report`` writes ``OUT/study.md`` and ``OUT/study.png`` from all finished runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

import study_report
import study_runs


def _names(known: dict[str, Any], chosen: str) -> list[str]:
    """Names in a comma-separated list, or all; exit with a message if one is unknown."""
    names = list(known) if chosen == "all" else chosen.split(",")
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{', '.join(unknown)}: not in study.yaml; choose from {', '.join(known)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a run failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train every arm on every data set")
    run.add_argument("--sets", default="all", help="comma-separated names of data sets (default: all)")
    run.add_argument("--arms", default="all", help="comma-separated names of arms (default: all)")
    run.add_argument("--seeds", type=_numbers, default=[0, 1], help="comma-separated seeds (default: 0,1)")
    run.add_argument("--folds", type=_numbers, help="comma-separated folds (default: those in study.yaml)")
    run.add_argument("--data", type=Path, help="folder that holds the files of the data sets")
    run.add_argument("--output", type=Path, required=True, help="folder of all runs and of the report")
    run.add_argument("--jobs", type=int, default=1, help="number of parallel runs (default: 1)")
    run.add_argument("--threads", type=int, help="CPU threads of each run (default: cores / jobs)")
    report = commands.add_parser("report", help="write OUT/study.md and OUT/study.png")
    report.add_argument("output", type=Path, metavar="OUT", help="the --output of the runs")
    report.add_argument(
        "--reference", default=study_runs.BASE, metavar="ARM",
        help="arm with which the others are compared (default: base)",
    )  # fmt: skip
    options = parser.parse_args(words)
    study = study_runs.load_study()
    if options.command == "report":
        study_report.write_report(study, options.output, *_names(study.arms, options.reference))
        return 0
    sets, arms = _names(study.sets, options.sets), _names(study.arms, options.arms)
    jobs = study_runs.list_jobs(study, sets, arms, options.seeds, options.folds, options.data)
    study_runs.check_records(jobs, options.output)
    print(f"{len(jobs)} runs in {options.output}", flush=True)
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    statuses: list[int] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for taught in (False, True):  # teachers are complete before their students begin
                now = [job for job in jobs if (job.teacher is not None) is taught]
                statuses += pool.map(lambda job: study_runs.run_job(job, options.output, threads), now)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
