"""What ``eval.py engine.check=N`` does: compare an engine with transformers' own forward pass on some
rows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.evaluate import differences
from lmsys_unsloth.evaluate.predictions import read_predictions, unadjusted
from lmsys_unsloth.predict.scorers import load_scorers
from lmsys_unsloth.predict.sources import Trained


def check_engine(config: Config, runs: Sequence[Run], output: Run) -> bool:
    """Score some rows with ``engine`` and with ``engine=transformers``; print and store how far they are
    apart.

    Rows are the first ones of the file that the run has scored; of another file, the first ones. Where
    unsloth is not installed, as in an environment of vLLM, the predictions that the run stored are the
    reference.

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
    rows = _rows(config, run, count)
    if find_spec("unsloth"):
        reference = config.engine.model_copy(update={"kind": "transformers"})
        other = _probabilities(config, adapter, rows)
        own = _probabilities(config.model_copy(update={"engine": reference}), adapter, rows)
        named = "transformers"
    else:
        own, named = _stored(run, rows), "the predictions that the run stored"
        other = _probabilities(config, adapter, rows)
    found = differences.compare(own, other, rows)
    verdict = "agree" if found.agrees else "DO NOT agree"
    print(f"{config.engine.kind} compared with {named} on {found}\nthey {verdict}")
    write_json(output.engine_check, {"engine": config.engine.kind, "agrees": found.agrees, **found.to_json()})
    return found.agrees


def _rows(config: Config, run: Run | None, count: int) -> list[Comparison]:
    rows = {row.id: row for row in load_rows(config.data)}
    if run is not None and run.predictions.is_file():
        scored = [rows[id] for id in read_predictions(run.predictions).ids if id in rows]
        if scored:
            return scored[:count]
    return list(rows.values())[:count]


def _stored(run: Run | None, rows: Sequence[Comparison]) -> np.ndarray:
    """The run's own probabilities of rows, as they were before any calibration."""
    stored = None if run is None or not run.predictions.is_file() else read_predictions(run.predictions)
    positions = {} if stored is None else {id: position for position, id in enumerate(stored.ids)}
    missing = [row.id for row in rows if row.id not in positions]
    if stored is None or missing:
        raise UserError(
            f"engine.check: unsloth, which computes the reference, is not installed here, and the run stored "
            f"no predictions of {len(missing)} of these {len(rows)} rows.\n  Check rows of its validation "
            "fold (leave data.path out), or run this where unsloth is installed."
        )
    return unadjusted(stored).probabilities[[positions[row.id] for row in rows]]


def _probabilities(config: Config, adapter: Path | None, rows: Sequence[Comparison]) -> np.ndarray:
    [scorer] = load_scorers([Trained(config, adapter)])
    return scorer.score(rows).probabilities
