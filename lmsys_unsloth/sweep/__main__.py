"""Summarise a sweep at any time, or compare runs that no sweep started.

python -m lmsys_unsloth.sweep SWEEP
python -m lmsys_unsloth.sweep RUN RUN … --output DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lmsys_unsloth.core.errors import prints_errors


@prints_errors
def main(arguments: Sequence[str]) -> int:
    """Write ``sweep.csv`` and ``sweep.html`` and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lmsys_unsloth.sweep",
        description="Compare the configurations of a sweep, finished or not, or any runs, row by row.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER",
        help="directory that `train.py -m …` printed; or several run directories or cross-validations",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("comparison"), metavar="DIR",
        help="where the comparison of several runs is written (default: comparison)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    from lmsys_unsloth.sweep.report import print_summary  # slow imports

    [folder, *others] = options.folders
    if others:
        from lmsys_unsloth.sweep.comparison import list_runs

        list_runs(options.folders, options.output)
        folder = options.output
    print_summary(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
