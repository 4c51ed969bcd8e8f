"""Write a simulated arena to a CSV file: ``python -m lmsys_unsloth.simulate rows=57477 out=arena.csv``.

Arguments are ``name=value`` in any order: ``rows`` (1000), ``out`` (needed), ``length`` (full; or
short), ``seed`` (0). The file has the Kaggle schema and ``p_true_a, p_true_b, p_true_tie``; when it
is read again these come back as the true probabilities.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.data.arena import simulate_row
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.schemas import MODELS, TEXTS, TRUE_PROBABILITIES, WINNERS

COLUMNS = ("id", *MODELS, *TEXTS, *WINNERS, *TRUE_PROBABILITIES)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What was asked for."""

    out: Path
    rows: int = 1000
    length: Literal["short", "full"] = "full"
    seed: int = 0


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Read ``name=value`` words.

    Raises:
        UserError: an unknown name, a value of the wrong kind, or no ``out``.
    """
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    problems = [f"{name}: no such argument" for name in given if name not in Arguments.__slots__]
    numbers = {"rows": 1000, "seed": 0}
    for name, least in (("rows", 1), ("seed", 0)):
        if name in given:
            if given[name].isdecimal() and int(given[name]) >= least:
                numbers[name] = int(given[name])
            else:
                problems.append(f"{name}={given[name]}: must be a whole number, at least {least}")
    length = given.get("length", "full")
    if length not in ("short", "full"):
        problems.append(f"length={length}: must be short or full")
    out = given.get("out", "")
    if not out.endswith(".csv"):
        problems.append(f"out={out}: must name a .csv file" if out else "out=FILE.csv is missing")
    if problems:
        usage = "python -m lmsys_unsloth.simulate rows=57477 out=arena.csv [length=short|full] [seed=0]"
        raise UserError("\n".join([*problems, f"usage: {usage}"]))
    return Arguments(Path(out), numbers["rows"], "short" if length == "short" else "full", numbers["seed"])


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
    """Make the rows one by one and write them; the file appears when it is complete."""
    out = arguments.out
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        with progress(f"writing {out.name}", arguments.rows, "row") as bar:
            for number in range(arguments.rows):
                writer.writerow(record(simulate_row(number, arguments.seed, arguments.length)))
                if number % 500 == 499:
                    bar.advance(500)
            bar.advance(arguments.rows % 500)


def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the file was written, 2 when the arguments are wrong."""
    try:
        arguments = parse_arguments(words)
        write(arguments)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.out}: {arguments.rows:,} rows, {arguments.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
