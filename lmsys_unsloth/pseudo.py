"""Write a file of pseudo-labelled rows for ``data.extra``: predictions of unlabelled rows as soft labels.

    python eval.py runs=[RUN0,RUN1] data.path=unlabelled.csv hydra.run.dir=SCORED
    python -m lmsys_unsloth.pseudo run=SCORED out=pseudo.csv
    python train.py … data.extra=[pseudo.csv]

Arguments are ``name=value`` in any order: ``run`` (required; a directory that ``eval.py`` made), ``out``
(required; a ``.csv`` or ``.parquet`` file), ``min_confidence`` (0, all rows; otherwise only rows whose
largest probability is at least this), ``max_rows`` (0, all; otherwise at most this many, the most confident).
The file has the Kaggle schema, all further columns of the source, and ``p_a, p_b, p_tie``. Rows that have a
label are left out: their predictions belong into ``data.soft_labels``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import DataConfig
from lmsys_unsloth.core.errors import UserError, prints_errors
from lmsys_unsloth.core.files import replacing, write_csv
from lmsys_unsloth.data.cells import most_likely
from lmsys_unsloth.data.comparison import LABELS, Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.data.schemas import MODELS, PROBABILITIES, TEXTS, TRUE_PROBABILITIES
from lmsys_unsloth.evaluate.predictions import read_predictions

RULES = {
    "run": ("", ".+", "must name a directory that eval.py made"),
    "out": ("", r".+\.(csv|parquet)", "must name a .csv or .parquet file"),
    "min_confidence": ("0", r"0?\.[0-9]+|[01](\.0+)?", "must be a number from 0 to 1"),
    "max_rows": ("0", "[0-9]+", "must be a whole number, at least 0"),
}
"""Arguments, as :mod:`~lmsys_unsloth.cli.words` reads them."""
USAGE = "python -m lmsys_unsloth.pseudo run=SCORED out=pseudo.csv [min_confidence=0] [max_rows=0]"


@dataclass(frozen=True, slots=True)
class PseudoLabelled:
    """Unlabelled rows with predictions as soft labels, and how many rows were left out."""

    rows: list[Comparison]
    labelled: int
    """Rows that were left out because they have a label."""
    uncertain: int
    """Rows that were left out by ``min_confidence`` or ``max_rows``."""


def label_rows(run: Run, min_confidence: float, max_rows: int | None) -> PseudoLabelled:
    """Choose unlabelled rows of a scored file by confidence, in file order.

    Args:
        run: directory that ``eval.py`` made.
        min_confidence: smallest largest probability of a row that is kept, 0 to 1.
        max_rows: maximum number of rows, the most confident ones; None: no limit.

    Raises:
        UserError: the directory has no predictions, its data file has changed since, or no row is left.
    """
    predicted = read_predictions(run.predictions)
    rows = _scored_rows(run)
    known = {row.id: row for row in rows if row.label is not None}
    unlabelled = {row.id: row for row in rows if row.label is None}
    index = np.array([row_id in unlabelled for row_id in predicted.ids], dtype=np.bool_)
    if not index.any():
        raise UserError(
            f"{run.path}: none of its {len(predicted):,} rows is unlabelled.\n  Score a file without winner "
            "columns, or train with these predictions of labelled rows: data.soft_labels=" + str(run.path)
        )
    found = predicted.take(index)
    confidence = found.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    chosen = np.sort(order[confidence[order] >= np.float32(min_confidence)][:max_rows])
    if not len(chosen):
        raise UserError(
            f"min_confidence={min_confidence:g}: no row is left, the highest confidence of {len(found):,} "
            f"rows is {confidence.max():.3f}; lower it"
        )
    kept = found.take(chosen)
    soft = [
        _with_soft_label(unlabelled[row_id], p)
        for row_id, p in zip(kept.ids, kept.probabilities, strict=True)
    ]
    return PseudoLabelled(soft, sum(row_id in known for row_id in predicted.ids), len(found) - len(kept))


def _scored_rows(run: Run) -> Sequence[Comparison]:
    """All rows of the file that a run scored, labelled or not."""
    try:
        data = DataConfig.model_validate(Run.open(run.path).settings()["data"])
    except (KeyError, ValidationError):
        raise UserError(
            f"{run.config}: its data section is not of this version; score the file again with eval.py"
        ) from None
    rows = load_rows(data)
    fingerprint = run.data_description().get("fingerprint")
    if fingerprint != rows_fingerprint(rows):
        raise UserError(
            f"{data.path or data.name}: has changed since {run.path} scored it, so its predictions may "
            "belong to other rows; score the file again with eval.py"
        )
    return rows


def _with_soft_label(row: Comparison, probabilities: NDArray[np.float32]) -> Comparison:
    p = probabilities.astype(np.float64)
    a, b, tie = (p / p.sum()).tolist()
    return dataclasses.replace(row, label=most_likely((a, b, tie)), soft_label=(a, b, tie))


def write(path: Path, rows: Sequence[Comparison]) -> None:
    """Write the rows as CSV or Parquet; the file appears when it is complete."""
    columns = _columns(rows)
    if path.suffix == ".csv":
        write_csv(path, list(columns), zip(*columns.values(), strict=True))
        return
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _columns(rows: Sequence[Comparison]) -> dict[str, list[Any]]:
    """Cells by column; further columns of the source that hold values of several types become text."""
    columns: dict[str, list[Any]] = {"id": [row.id for row in rows]}
    for name in MODELS:
        columns[name] = [getattr(row, name) for row in rows]
    turns = zip(*((row.prompts, row.responses_a, row.responses_b) for row in rows), strict=True)
    for name, texts in zip(TEXTS, turns, strict=True):
        columns[name] = [json.dumps(text, ensure_ascii=False) for text in texts]
    for k, name in enumerate(PROBABILITIES):
        columns[name] = [row.soft_label[k] for row in rows if row.soft_label is not None]
    if all(row.true_probabilities is not None for row in rows):
        for k, name in enumerate(TRUE_PROBABILITIES):
            columns[name] = [row.true_probabilities[k] for row in rows if row.true_probabilities is not None]
    for name in dict.fromkeys(name for row in rows for name in row.extra):
        values = [row.extra.get(name) for row in rows]
        several = len({type(value) for value in values if value is not None}) > 1
        columns[name] = [None if v is None else str(v) for v in values] if several else values
    return columns


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the file was written, 2 when something is wrong."""
    values = parse_words(words, RULES, USAGE)
    out = Path(values["out"])
    found = label_rows(
        Run.open(Path(values["run"])), float(values["min_confidence"]), int(values["max_rows"]) or None
    )
    write(out, found.rows)
    counts = Counter(row.label for row in found.rows)
    outcomes = ", ".join(f"{counts[label]:,} {name}" for label, name in enumerate(LABELS))
    print(f"{out}: {len(found.rows):,} rows (most likely outcome: {outcomes})")
    print(f"left out: {found.uncertain:,} less certain rows, {found.labelled:,} rows that have a label")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
