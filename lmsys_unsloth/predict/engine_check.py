"""What ``eval.py engine.check=N`` does: compare an engine with transformers' own forward pass on some
rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.evaluate import differences
from lmsys_unsloth.evaluate.predictions import read_predictions
from lmsys_unsloth.predict.scorers import load_scorers
from lmsys_unsloth.predict.sources import Trained


def check_engine(config: Config, runs: Sequence[Run], output: Run) -> bool:
    """Score some rows with ``engine`` and with ``engine=transformers``; print and store how far they are
    apart.

    Rows are the first ones of the file that the run has scored; of another file, the first ones.

    Returns:
        Whether log loss does not clearly move by more than
        :data:`~lmsys_unsloth.evaluate.differences.LARGEST_CHANGE`.

    Raises:
        UserError: several runs are named, or the engine fails.
    """
    count = config.engine.check
    assert count is not None
    if len(runs) > 1:
        raise UserError(f"engine.check = {count}: compares the engines of one model; name one run=RUN.")
    run = runs[0] if runs else None
    adapter = None if run is None else run.adapter
    reference = config.engine.model_copy(update={"kind": "transformers"})
    rows = _rows(config, run, count)
    other = _probabilities(config, adapter, rows)
    own = _probabilities(config.model_copy(update={"engine": reference}), adapter, rows)
    found = differences.compare(own, other, rows)
    verdict = "agree" if found.agrees else "DO NOT agree"
    print(f"{config.engine.kind} compared with transformers on {found}\nthey {verdict}")
    write_json(output.engine_check, {"engine": config.engine.kind, "agrees": found.agrees, **found.to_json()})
    return found.agrees


def _rows(config: Config, run: Run | None, count: int) -> list[Comparison]:
    rows = {row.id: row for row in load_rows(config.data)}
    if run is not None and run.predictions.is_file():
        scored = [rows[id] for id in read_predictions(run.predictions).ids if id in rows]
        if scored:
            return scored[:count]
    return list(rows.values())[:count]


def _probabilities(config: Config, adapter: Path | None, rows: Sequence[Comparison]) -> np.ndarray:
    [scorer] = load_scorers([Trained(config, adapter)])
    return scorer.score(rows).probabilities
