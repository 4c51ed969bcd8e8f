"""Save the project's wandb workspace.

python -m lmsys_unsloth.dashboard [--project NAME] [--entity NAME]
"""

from __future__ import annotations

import sys

from lmsys_unsloth.report.workspace import main

if __name__ == "__main__":
    main(sys.argv[1:])
