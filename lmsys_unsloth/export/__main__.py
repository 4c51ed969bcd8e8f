"""Write a trained model in a format that other programs read.

    python -m lmsys_unsloth.export run=RUN format=merged16 out=DIR

Arguments are ``name=value`` in any order: ``run`` (required; a run directory, or that of a cross-validation
whose adapters are averaged), ``format`` (required: adapter, merged16, classifier, gguf, fp8, gptq8), ``out``
(required; a new folder), ``base`` (trained; or 16bit: merge into the weights that a 4-bit base was made
from), ``type`` (bf16; of GGUF files also f16, f32, q8_0), ``rows`` (100; number of validation rows on which
probabilities before and after are compared, 0: none), ``force`` (false; true: write even if log loss changes
by more than 0.005), ``push`` (USER/REPO on the Hugging Face hub).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.core.errors import prints_errors

KINDS = "adapter|merged16|classifier|gguf|fp8|gptq8"
RULES = {
    "run": ("", ".+", "must name a directory that train.py or eval.py made"),
    "format": ("", KINDS, f"must be one of {KINDS.replace('|', ', ')}"),
    "out": ("", ".+", "must name the folder to write"),
    "base": ("trained", "trained|16bit", "must be trained or 16bit"),
    "type": ("bf16", "bf16|f16|f32|q8_0", "must be bf16, f16, f32 or q8_0"),
    "rows": ("100", "[0-9]+", "must be a whole number, at least 0"),
    "force": ("false", "true|false", "must be true or false"),
    "push": ("", r"|[\w.-]+/[\w.-]+", "must be USER/REPO"),
}
"""Arguments, as :mod:`~lmsys_unsloth.cli.words` reads them."""
USAGE = (
    f"python -m lmsys_unsloth.export run=RUN format={KINDS} out=DIR "
    "[base=trained|16bit] [type=bf16|f16|f32|q8_0] [rows=100] [force=false] [push=USER/REPO]"
)


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the folder was written, 2 when something is wrong."""
    values = parse_words(words, RULES, USAGE)
    from lmsys_unsloth.export.export import export, push  # slow imports

    out = Path(values["out"])
    export(
        Path(values["run"]), values["format"], out, base=values["base"], type=values["type"],
        rows=int(values["rows"]), force=values["force"] == "true",
    )  # fmt: skip
    print(f"exported: {out}")
    if values["push"]:
        print(f"pushed: {push(out, values['push'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
