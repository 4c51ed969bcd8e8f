"""Rows on which an exported model is compared with its run."""

from __future__ import annotations

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.evaluate.predictions import read_predictions


def validation_rows(run: Run, config: Config, count: int) -> list[Comparison]:
    """The first ``count`` rows that the run scored.

    Raises:
        UserError: the run's data file is missing or has changed.
    """
    rows = load_rows(config.data)
    if run.data_description().get("fingerprint") not in (None, rows_fingerprint(rows)):
        raise UserError(
            f"{config.data.path or config.data.name}: has changed since {run.path} was trained.\n"
            "  Restore it, or leave the comparison out: rows=0"
        )
    by_id = {row.id: row for row in rows}
    ids = read_predictions(run.predictions).ids if run.predictions.is_file() else list(by_id)
    return [by_id[id] for id in ids if id in by_id][:count]
