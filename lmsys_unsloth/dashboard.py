"""The command ``python -m lmsys_unsloth.dashboard``, which saves the project's wandb workspace."""

from __future__ import annotations

import sys

from lmsys_unsloth.report.workspace import main

if __name__ == "__main__":
    main(sys.argv[1:])
