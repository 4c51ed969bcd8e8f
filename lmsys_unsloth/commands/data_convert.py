"""Convert a public set of preferences to a file that ``data.path`` takes.

    lmsys-unsloth data convert in=preference.jsonl.gz out=helpsteer.csv
    lmsys-unsloth data convert in=hf:allenai/reward-bench split=raw out=bench.parquet
    lmsys-unsloth data convert layouts                  lists the layouts that are known, with their licences

Arguments are ``name=value`` in any order: ``in`` (a file or ``hf:owner/name``), ``out`` (``.csv`` or
``.parquet``), ``layout`` (auto; a name, or a YAML file of your own), ``split`` (train; of a Hugging Face
dataset), ``bad`` (error; ``skip`` leaves out rows that can't be converted).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.core.errors import prints_errors
from lmsys_unsloth.data.comparison import LABELS

RULES = {
    "in": ("", ".+", "must name a file, or hf:owner/name"),
    "out": ("", r".+\.(csv|parquet)", "must name a .csv or .parquet file"),
    "layout": ("auto", ".+", "must be a name, or a YAML file"),
    "split": ("train", ".+", "must name a split"),
    "bad": ("error", "error|skip", "must be error or skip"),
}
"""Arguments, as :mod:`~lmsys_unsloth.cli.words` reads them."""

USAGE = "lmsys-unsloth data convert in=FILE out=FILE.csv [layout=NAME] [split=train] [bad=skip], or layouts"


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the file was written, 2 when it can't be."""
    from lmsys_unsloth.data_tools.conversion import convert
    from lmsys_unsloth.data_tools.layouts import known_layouts

    if list(words) == ["layouts"]:
        for name, layout in known_layouts().items():
            print(f"{name:24} {layout.title}; licence: {layout.licence}")
        return 0
    values = parse_words(words, RULES, USAGE)
    done = convert(
        values["in"], Path(values["out"]), layout=values["layout"], split=values["split"],
        skip=values["bad"] == "skip",
    )  # fmt: skip
    rows = sum(done.outcomes.values())
    counts = ", ".join(f"{name} {done.outcomes[name]:,}" for name in LABELS)
    print(f"{values['out']}: {rows:,} rows ({counts}); layout {done.layout}, {done.title}")
    if done.bad:
        first = done.bad[0]
        print(f"{len(done.bad):,} rows left out, the first one: row {first.number}, {first.reason}")
    print(f"licence, as its publisher states it: {done.licence}")
    return 0
