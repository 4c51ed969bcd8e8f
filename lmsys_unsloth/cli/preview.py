"""What a run is about to see: counts, lengths, cuts, leaks, and one row exactly as the model gets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.data.dataset import FoldData
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = 8
SHOWN_CHARACTERS = 400


def print_preview(
    run: Run,
    fold: FoldData,
    encoder: RowEncoder,
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    *,
    whole: bool,
) -> None:
    """Print the table and a sample, and write ``samples.json``.

    Args:
        whole: print the sample in full; otherwise its beginning and its end.
    """
    write_samples(run, encoder, validation)
    console = Console()
    console.print(_table(train, validation))
    console.print(f"leak report: {fold.description['leak']['verdict']}", highlight=False)
    _left_out(console, fold.description)
    if not validation:
        return
    text = encoder.preview(validation[0])
    if not whole and len(text) > 2 * SHOWN_CHARACTERS:
        left_out = len(text) - 2 * SHOWN_CHARACTERS
        text = f"{text[:SHOWN_CHARACTERS]}\n   … {left_out:,} characters …\n{text[-SHOWN_CHARACTERS:]}"
    console.rule(
        f"row {validation[0].comparison.id} as the model sees it ({len(validation[0].input_ids)} tokens)"
    )
    console.print(text, markup=False, highlight=False)
    console.rule()


def write_samples(run: Run, encoder: RowEncoder, rows: Sequence[EncodedRow]) -> None:
    """``RUN/samples.json``: the first validation rows as tokenised."""
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


def _table(train: Sequence[EncodedRow], validation: Sequence[EncodedRow]) -> Table:
    table = Table("", "train", "validation", box=None, pad_edge=False)
    columns = [_facts(train), _facts(validation)]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _facts(rows: Sequence[EncodedRow]) -> dict[str, str]:
    labels = np.bincount(
        [row.comparison.label for row in rows if row.comparison.label is not None], minlength=len(LABELS)
    )
    lengths = np.array([len(row.input_ids) for row in rows] or [0])
    cut = np.array([row.share_cut for row in rows] or [0.0])
    return {
        "rows": f"{len(rows):,}",
        "labels " + " / ".join(LABELS): " / ".join(f"{share:.3f}" for share in labels / max(labels.sum(), 1)),
        "tokens in all": f"{lengths.sum():,}",
        "tokens a row, 5% 50% 95% 100%": _percentiles(lengths),
        "several turns": f"{np.mean([len(row.comparison.prompts) > 1 for row in rows] or [False]):.1%}",
        "rows cut": f"{np.mean(cut > 0):.1%}",
        "text cut from those": f"{cut[cut > 0].mean():.1%}" if (cut > 0).any() else "-",
    }


def _percentiles(values: NDArray[Any]) -> str:
    return " ".join(f"{value:,.0f}" for value in np.percentile(values, [5, 50, 95, 100]))


def _left_out(console: Console, description: dict[str, Any]) -> None:
    """No row vanishes in silence: bad rows, and extra rows that would leak."""
    bad = description["bad_rows"]
    if bad["rows"]:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in bad["by_reason"].items())
        console.print(f"bad rows left out: {bad['rows']} ({reasons}), see bad_rows.csv", highlight=False)
    for source in description["extra"]:
        console.print(f"extra data: {source}", highlight=False, markup=False)
