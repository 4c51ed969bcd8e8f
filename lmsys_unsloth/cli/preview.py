"""Preview of the rows that a run will use: counts, lengths, truncation, leaks, and one complete prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.data.dataset import FoldData
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder

SAMPLES = 8
"""Number of rows in ``samples.json``."""

EXCERPT_CHARACTERS = 400
"""Number of characters that are printed of each end of a long prompt."""


def print_preview(
    run: Run,
    fold: FoldData,
    encoder: RowEncoder,
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    *,
    whole: bool,
) -> None:
    """Print statistics of the rows and a sample prompt, and write ``samples.json``.

    Args:
        whole: print the sample prompt in full instead of its two ends.
    """
    write_samples(run, encoder, validation)
    console = Console(highlight=False)
    table = Table("", "train", "validation", box=None, pad_edge=False)
    columns = (_statistics(train), _statistics(validation))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    leak = fold.description["leak"]
    console.print(f"leak report: {'; '.join([leak['verdict'], *leak['warnings']])}", markup=False)
    _print_rows_left_out(console, fold.description)
    if not validation:
        return
    row = validation[0]
    text = encoder.preview(row)
    left_out = len(text) - 2 * EXCERPT_CHARACTERS
    if not whole and left_out > 0:
        start, end = text[:EXCERPT_CHARACTERS], text[-EXCERPT_CHARACTERS:]
        text = f"{start}\n   … {left_out:,} characters left out …\n{end}"
    console.rule(f"row {row.comparison.id} as the model sees it ({len(row.input_ids):,} tokens)")
    console.print(text, markup=False)
    console.rule()


def write_samples(run: Run, encoder: RowEncoder, rows: Sequence[EncodedRow]) -> None:
    """Write the first validation rows, as tokenised, to ``samples.json``."""
    run.write_samples(
        [
            {
                "id": row.comparison.id,
                "text": row.text,
                "input_ids": row.input_ids.tolist(),
                "answer_ids": [list(ids) for ids in encoder.answer_ids],
            }
            for row in rows[:SAMPLES]
        ]
    )


def _statistics(rows: Sequence[EncodedRow]) -> dict[str, str]:
    known = [row.comparison.label for row in rows if row.comparison.label is not None]
    labels = np.bincount(known, minlength=len(LABELS)) / max(len(known), 1)
    lengths = np.array([len(row.input_ids) for row in rows] or [0])
    percentiles = np.percentile(lengths, [5, 50, 95, 100])
    cut = np.array([row.share_cut for row in rows] or [0.0])
    several_turns = [len(row.comparison.prompts) > 1 for row in rows] or [False]
    return {
        "rows": f"{len(rows):,}",
        "share of labels " + " / ".join(LABELS): " / ".join(f"{share:.3f}" for share in labels),
        "tokens in total": f"{lengths.sum():,}",
        "tokens per row, 5% 50% 95% max": " ".join(f"{length:,.0f}" for length in percentiles),
        "rows with several turns": f"{np.mean(several_turns):.1%}",
        "truncated rows": f"{np.mean(cut > 0):.1%}",
        "text cut from truncated rows": f"{cut[cut > 0].mean():.1%}" if (cut > 0).any() else "-",
    }


def _print_rows_left_out(console: Console, description: dict[str, Any]) -> None:
    """Print how many rows were not used, and why."""
    bad = description["bad_rows"]
    if bad["rows"]:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in bad["by_reason"].items())
        console.print(f"bad rows left out: {bad['rows']} ({reasons}), listed in bad_rows.csv", markup=False)
    for extra in description["extra"]:
        console.print(
            f"extra data {extra['source']}: {extra['used']:,} of {extra['rows']:,} rows used; left out: "
            f"{extra['in_validation']:,} with a prompt of a validation row, "
            f"{extra['already_in_training']:,} that are training rows already",
            markup=False,
        )
