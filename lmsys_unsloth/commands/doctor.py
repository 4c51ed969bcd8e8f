"""Say what this machine has, what will be fast on it, and what does not fit together.

    lmsys-unsloth doctor
    lmsys-unsloth doctor bundle=report.zip              a file for a bug report, without private data
    lmsys-unsloth doctor bundle=report.zip run=RUN      with configuration, numbers and log of a run

Takes a few seconds; no network is used. The exit status is 1 if something will not work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError, prints_errors

RULES = {
    "bundle": ("none.zip", r".+\.zip", "must name a .zip file"),
    "run": ("", ".*", "must name a run directory"),
}
"""Arguments, as :mod:`~lmsys_unsloth.cli.words` reads them."""


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when all is well, 1 when something will not work, 2 for wrong arguments."""
    joined = " ".join(words).replace("--bundle ", "bundle=").replace("--bundle=", "bundle=").split()
    values = parse_words(joined, RULES, "lmsys-unsloth doctor [bundle=FILE.zip [run=RUN]]")
    run = Run.open(Path(values["run"])) if values["run"] else None
    from lmsys_unsloth.cli.machine.bundle import write_bundle  # slow imports
    from lmsys_unsloth.cli.machine.diagnosis import diagnose
    from lmsys_unsloth.cli.preflight import print_checks

    checks, status = diagnose(), 0
    try:
        print_checks(checks)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    if any(word.startswith("bundle=") for word in joined):
        names = write_bundle(Path(values["bundle"]), checks, run)
        print(f"{values['bundle']}: {', '.join(names)}; look into it before you send it")
    return status
