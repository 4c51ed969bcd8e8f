"""Summarise a sweep, at any time: ``python -m lmsys_unsloth.sweep SWEEP``."""

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
        description="Compare the configurations of a sweep, finished or not.",
    )
    parser.add_argument("folder", type=Path, metavar="SWEEP", help="directory that `train.py -m …` printed")
    folder = parser.parse_args(arguments).folder
    from lmsys_unsloth.sweep.report import print_summary  # slow imports

    print_summary(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
