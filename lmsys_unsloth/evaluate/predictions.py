"""``RUN/predictions.parquet``: one line for each scored row, and ``submission.csv`` made from it."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.data.comparison import LABELS

UNLABELLED = -1
COLUMNS = ("id", "fold", "p_a", "p_b", "p_tie", "label")
"""The first columns, in this order; any other columns follow."""

SUBMISSION_COLUMNS = ("id", "winner_model_a", "winner_model_b", "winner_tie")
_LISTED = 10


@dataclass(frozen=True)
class Predictions:
    """Scored rows in the input's order.

    ``extra`` holds further columns of the same length. Known names: ``group`` (prompts that
    share a fold), ``n_turns``, ``n_tokens``, ``share_cut`` (of the conversation, left out of the
    prompt), ``model_a``, ``model_b``, ``identical_answers``, and from a scoring with exchanged bots
    ``p_forward_*`` and ``p_swap_*`` (see :func:`with_swap`).
    """

    ids: Sequence[str]
    folds: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    """[n, 3] in LABELS order."""
    labels: NDArray[np.int64]
    """[n], index into LABELS, or :data:`UNLABELLED`."""
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        lengths = {"folds": len(self.folds), "labels": len(self.labels)}
        lengths |= {name: len(values) for name, values in self.extra.items()}
        wrong = [f"{name} has {length}" for name, length in lengths.items() if length != n]
        if self.probabilities.shape != (n, len(LABELS)):
            wrong.append(f"probabilities have shape {self.probabilities.shape}")
        if wrong:
            raise ValueError(f"{n} ids, but {', '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def groups(self) -> list[str]:
        """Prompt group of each row; a row without one is its own group."""
        named = self.extra.get("group") or [None] * len(self)
        return [
            f"id {id}" if group is None else str(group) for id, group in zip(self.ids, named, strict=True)
        ]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Mask [n] of rows whose outcome is known."""
        return np.asarray(self.labels != UNLABELLED)

    def take(self, index: NDArray[Any]) -> Predictions:
        """The rows that a mask [n] or an array of positions selects."""
        positions = np.flatnonzero(index) if index.dtype == bool else index
        at: list[int] = positions.tolist()
        return Predictions(
            [self.ids[i] for i in at],
            self.folds[positions],
            self.probabilities[positions],
            self.labels[positions],
            {name: [values[i] for i in at] for name, values in self.extra.items()},
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write ``predictions.parquet`` whole or not at all; an unknown label becomes null."""
    p = predictions.probabilities.astype(np.float32)
    columns: dict[str, Any] = {
        "id": pa.array([str(id) for id in predictions.ids], pa.string()),
        "fold": pa.array(predictions.folds.astype(np.int32)),
        **{f"p_{name}": pa.array(p[:, k]) for k, name in enumerate(LABELS)},
        "label": pa.array(predictions.labels.astype(np.int32), mask=~predictions.labelled),
    }
    for name, values in predictions.extra.items():
        columns[name] = pa.array(np.asarray(values) if isinstance(values, np.ndarray) else list(values))
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` wrote.

    Raises:
        UserError: the file is missing, is not Parquet, or lacks a column.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. A finished train.py or eval.py writes it; score the run with "
            f"`python eval.py run={path.parent}`."
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: can't be read as Parquet ({error}). Score the run again.") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: lacks {', '.join(missing)}. Predictions have the columns {', '.join(COLUMNS)}."
        )
    labels = table.column("label").fill_null(UNLABELLED).to_numpy()
    return Predictions(
        [str(id) for id in table.column("id").to_pylist()],
        table.column("fold").to_numpy().astype(np.int64),
        np.column_stack([table.column(f"p_{name}").to_numpy() for name in LABELS]).astype(np.float32),
        labels.astype(np.int64),
        {name: table.column(name).to_pylist() for name in table.column_names if name not in COLUMNS},
    )


def write_submission(path: Path, predictions: Predictions) -> None:
    """Write ``submission.csv``: every id once, in the input's order, each row summing to 1.

    Raises:
        UserError: an id occurs twice, so that nobody could say which of its rows counts.
    """
    double = repeated(predictions.ids)
    if double:
        raise UserError(f"{listed(double)}: predicted more than once. A submission holds every id once.")
    p = predictions.probabilities.astype(np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SUBMISSION_COLUMNS)
        writer.writerows([id, *row] for id, row in zip(predictions.ids, p.tolist(), strict=True))


def with_swap(
    predictions: Predictions, swapped: NDArray[Any], where: NDArray[Any] | None = None
) -> Predictions:
    """Average each row with its scoring under exchanged bots, and keep both beside the average.

    Args:
        swapped: [m, 3] probabilities from the exchanged prompts as the model gave them; they are
            turned back here, so that ``p_swap_a`` speaks of the same bot as ``p_a``.
        where: positions [m] of those rows when only some were scored twice; the others keep
            their probabilities and have null in ``p_swap_*``.
    """
    positions = np.arange(len(predictions)) if where is None else np.asarray(where)
    back = np.full((len(predictions), 3), np.nan, dtype=np.float32)
    back[positions] = np.asarray(swapped, dtype=np.float32)[:, [1, 0, 2]]
    forward = predictions.probabilities.astype(np.float32)
    average = np.where(np.isnan(back), forward, (forward + np.nan_to_num(back)) / 2).astype(np.float32)
    views = {
        f"p_{view}_{name}": [None if np.isnan(value) else value for value in values[:, k].tolist()]
        for view, values in (("forward", forward), ("swap", back))
        for k, name in enumerate(LABELS)
    }
    return dataclasses.replace(predictions, probabilities=average, extra={**predictions.extra, **views})


def swap_views(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Probabilities (forward [m, 3], exchanged and turned back [m, 3]) of rows scored both ways, or None."""
    swapped = _view(predictions, "swap")
    if swapped is None:
        return None
    forward = _view(predictions, "forward")
    if forward is None:
        forward = predictions.probabilities.astype(np.float64)
    both = ~np.isnan(swapped).any(axis=1)
    return (forward[both], swapped[both]) if both.any() else None


def least_certain(probabilities: NDArray[Any], share: float) -> NDArray[np.int64]:
    """Positions, ascending, of the share of rows whose most probable outcome is least probable.

    >>> least_certain(np.array([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.5, 0.5, 0.0]]), 0.34).tolist()
    [1]
    """
    count = round(share * len(probabilities))
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    return np.sort(order[:count]).astype(np.int64)


def repeated(ids: Sequence[str]) -> list[str]:
    """Ids that occur more than once, in order of first appearance."""
    return [id for id, count in Counter(ids).items() if count > 1]


def listed(ids: Sequence[str]) -> str:
    """The first ids and the number of the others: ``ids 3, 7 and 12 more``."""
    more = len(ids) - _LISTED
    names = ", ".join(str(id) for id in ids[:_LISTED])
    return f"{'id' if len(ids) == 1 else 'ids'} {names}" + (f" and {more} more" if more > 0 else "")


def _view(predictions: Predictions, view: str) -> NDArray[np.float64] | None:
    names = [f"p_{view}_{name}" for name in LABELS]
    if any(name not in predictions.extra for name in names):
        return None
    columns = [[np.nan if v is None else v for v in predictions.extra[name]] for name in names]
    return np.asarray(columns, dtype=np.float64).T
