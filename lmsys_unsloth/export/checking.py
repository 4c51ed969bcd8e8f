"""Rows on which an exported model is compared with its run, and rows that it is calibrated with."""

from __future__ import annotations

import random

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
    by_id, scored = _rows(run, config)
    return [by_id[id] for id in (scored or by_id) if id in by_id][:count]


def calibration_rows(run: Run, config: Config, count: int) -> list[Comparison]:
    """``count`` rows that the run did not score, chosen at random with its seed.

    Raises:
        UserError: the run's data file is missing or has changed.
    """
    by_id, scored = _rows(run, config)
    others = sorted(by_id.keys() - set(scored)) or list(by_id)
    chosen = random.Random(config.seed).sample(others, min(count, len(others)))
    return [by_id[id] for id in chosen]


def _rows(run: Run, config: Config) -> tuple[dict[str, Comparison], list[str]]:
    """Rows of the run's data by id, and the ids of those that it scored."""
    rows = load_rows(config.data)
    if run.data_description().get("fingerprint") not in (None, rows_fingerprint(rows)):
        raise UserError(
            f"{config.data.path or config.data.name}: has changed since {run.path} was trained.\n"
            "  Restore it, or leave the comparison out: rows=0"
        )
    ids = list(read_predictions(run.predictions).ids) if run.predictions.is_file() else []
    return {row.id: row for row in rows}, ids
