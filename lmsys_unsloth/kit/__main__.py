"""Write a folder that predicts a test file on a machine without network, such as a Kaggle notebook.

    python -m lmsys_unsloth.kit run=RUN out=kit python=3.11

Arguments are ``name=value`` in any order: ``run`` (required; a run directory, or that of a cross-validation,
whose models are averaged), ``out`` (required; a new folder), ``python`` (3.11; version on that machine),
``platform`` (manylinux_2_35_x86_64; pip's name of that machine), ``wheels`` (true; false: packages are there
already), ``torch`` (false; true: with torch, which GPU machines have already), ``base`` (false; true: with
the base model's weights).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.core.errors import prints_errors

_TRUTH = ("true|false", "must be true or false")
RULES = {
    "run": ("", ".+", "must name a directory that train.py or eval.py made"),
    "out": ("", ".+", "must name the folder to write"),
    "python": ("3.11", r"3\.1[1-3]", "must be 3.11, 3.12 or 3.13"),
    "platform": ("manylinux_2_35_x86_64", r"\w+", "must be a platform as pip names it"),
    "wheels": ("true", *_TRUTH),
    "torch": ("false", *_TRUTH),
    "base": ("false", *_TRUTH),
}
"""Arguments, as :mod:`~lmsys_unsloth.cli.words` reads them."""
USAGE = (
    "python -m lmsys_unsloth.kit run=RUN out=DIR [python=3.11] [platform=manylinux_2_35_x86_64] "
    "[wheels=true] [torch=false] [base=false]"
)


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the folder was written, 2 when something is wrong."""
    values = parse_words(words, RULES, USAGE)
    from lmsys_unsloth.kit.kit import Packages, write_kit  # slow imports

    packages = None
    if values["wheels"] == "true":
        packages = Packages(values["python"], values["platform"], torch=values["torch"] == "true")
    kit = write_kit(Path(values["run"]), Path(values["out"]), packages, base=values["base"] == "true")
    print(kit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
