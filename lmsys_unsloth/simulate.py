"""Write a simulated arena to a CSV file: ``python -m lmsys_unsloth.simulate rows=57477 out=arena.csv``.

Arguments are ``name=value`` in any order: ``rows`` (1000), ``out`` (required), ``length`` (full; or
short), ``seed`` (0). The file has the Kaggle schema and ``p_true_a, p_true_b, p_true_tie``, which are
read back as the true probabilities.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.core.errors import prints_errors
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.data.arena import simulate_row
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import MODELS, TEXTS, TRUE_PROBABILITIES, WINNERS

COLUMNS = ("id", *MODELS, *TEXTS, *WINNERS, *TRUE_PROBABILITIES)
RULES = {
    "rows": ("1000", "0*[1-9][0-9]*", "must be a whole number, at least 1"),
    "seed": ("0", "[0-9]+", "must be a whole number, at least 0"),
    "length": ("full", "short|full", "must be short or full"),
    "out": ("", r".+\.csv", "must name a .csv file"),
}
"""Arguments, as :mod:`~lmsys_unsloth.cli.words` reads them."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments of the command."""

    out: Path
    rows: int
    length: Literal["short", "full"]
    seed: int


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Read ``name=value`` words.

    Raises:
        UserError: an unknown name, a value of the wrong kind, or no ``out``.
    """
    values = parse_words(
        words, RULES, "python -m lmsys_unsloth.simulate rows=57477 out=arena.csv [length=short|full] [seed=0]"
    )
    length: Literal["short", "full"] = "short" if values["length"] == "short" else "full"
    return Arguments(Path(values["out"]), int(values["rows"]), length, int(values["seed"]))


def record(row: Comparison) -> tuple[str, ...]:
    """The cells of one row under :data:`COLUMNS`."""
    texts = (row.prompts, row.responses_a, row.responses_b)
    return (
        row.id,
        row.model_a or "",
        row.model_b or "",
        *(json.dumps(turns, ensure_ascii=False) for turns in texts),
        *(str(int(row.label == index)) for index in range(3)),
        *(repr(p) for p in row.true_probabilities or ()),
    )


def write(arguments: Arguments) -> None:
    """Write the rows one by one; the file appears when it is complete."""
    out = arguments.out
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        with progress(f"writing {out.name}", arguments.rows, "row") as bar:
            for number in range(arguments.rows):
                writer.writerow(record(simulate_row(number, arguments.seed, arguments.length)))
                bar.advance(1)


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the file was written, 2 when the arguments are wrong."""
    arguments = parse_arguments(words)
    write(arguments)
    print(f"{arguments.out}: {arguments.rows:,} rows, {arguments.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
