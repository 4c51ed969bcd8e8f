"""Preview of the rows that a run will use: counts, lengths, truncation, leaks, and one complete prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.prompting.encoding import EncodedRow
from lmsys_unsloth.prompting.prepared import Prepared

SAMPLES = 8
"""Number of rows in ``samples.json``."""
EXCERPT_CHARACTERS = 400
"""Number of characters that are printed of each end of a long prompt."""


def print_preview(description: dict[str, Any], prepared: Prepared, *, whole: bool) -> None:
    """Print statistics of the rows, and one prompt: its start and end, or with ``whole`` all of it.

    ``description`` is the content of ``data.json``.
    """
    console = Console(highlight=False)
    table = Table("", "train", "validation", box=None, pad_edge=False)
    train, validation = _statistics(prepared.train), _statistics(prepared.scored)
    for name in train:
        table.add_row(name, train[name], validation[name])
    console.print(table)
    leak = description["leak"]
    console.print(f"leak report: {'; '.join([leak['verdict'], *leak['warnings']])}", markup=False)
    _print_rows_left_out(console, description)
    row = prepared.scored[0]
    text = prepared.encoder.preview(row)
    left_out = len(text) - 2 * EXCERPT_CHARACTERS
    if not whole and left_out > 0:
        start, end = text[:EXCERPT_CHARACTERS], text[-EXCERPT_CHARACTERS:]
        text = f"{start}\n   … {left_out:,} characters left out …\n{end}"
    console.rule(f"row {row.comparison.id} as the model sees it ({len(row.input_ids):,} tokens)")
    console.print(text, markup=False)
    console.rule()


def write_samples(run: Run, prepared: Prepared) -> None:
    """Write the first rows to be scored, as tokenised, to ``samples.json``."""
    samples = [
        {
            "id": row.comparison.id,
            "text": row.text,
            "input_ids": row.input_ids.tolist(),
            "answer_ids": prepared.encoder.answer_ids,
        }
        for row in prepared.scored[:SAMPLES]
    ]
    write_json(run.samples, samples)


def _statistics(rows: Sequence[EncodedRow]) -> dict[str, str]:
    """Statistics of labelled rows, by name."""
    known = [row.comparison.label for row in rows if row.comparison.label is not None]
    labels = np.bincount(known, minlength=len(LABELS)) / len(known)
    lengths = np.array([len(row.input_ids) for row in rows])
    percentiles = np.percentile(lengths, [5, 50, 95, 100])
    cut = np.array([row.share_cut for row in rows])
    several_turns = [len(row.comparison.prompts) > 1 for row in rows]
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
