"""List the models that ``model=NAME`` chooses, and what fits this machine.

    python -m lmsys_unsloth.models

``--json`` prints the list in a form for programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from lmsys_unsloth.cli.model_list import list_models, print_models
from lmsys_unsloth.core.errors import prints_errors


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the list was printed, 2 when something is wrong."""
    parser = argparse.ArgumentParser("python -m lmsys_unsloth.models", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    options = parser.parse_args(words)
    models = list_models()
    if options.json:
        print(json.dumps([dataclasses.asdict(model) for model in models], indent=2))
    else:
        print_models(models)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
