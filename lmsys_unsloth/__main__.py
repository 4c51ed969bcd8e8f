"""``python -m lmsys_unsloth``: the command ``lmsys-unsloth``, where it is not on the path."""

from __future__ import annotations

import sys

from lmsys_unsloth.commands.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
