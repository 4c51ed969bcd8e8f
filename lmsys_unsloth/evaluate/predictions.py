"""Predictions of scored rows, stored in ``RUN/predictions.parquet`` and ``submission.csv``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing
from lmsys_unsloth.data.comparison import LABELS, UNLABELLED

COLUMNS = ("id", "fold", *(f"p_{name}" for name in LABELS), "label")
"""The first columns of ``predictions.parquet``, in this order; any other columns follow."""

SWAP_COLUMNS = tuple(f"p_{view}_{name}" for view in ("forward", "swap") for name in LABELS)
"""Columns with the probabilities of both orders, forward and swapped; see :func:`with_swap`."""

RAW_COLUMNS = tuple(f"p_raw_{name}" for name in LABELS)
"""Columns with the model's own probabilities, present when ``p_*`` are calibrated or stacked."""

FORM_COLUMNS = tuple(f"p_form_{name}" for name in LABELS)
"""Columns with the predictions of the regression on form, if it was fitted."""

BASELINE_COLUMNS = tuple(f"p_baseline_{name}" for name in LABELS)
"""Columns with the predictions of the baseline, logistic regression, if it was fitted."""

SUBMISSION_COLUMNS = ("id", "winner_model_a", "winner_model_b", "winner_tie")
"""Columns of ``submission.csv``, as Kaggle expects them."""

_LISTED_IDS = 10


@dataclass(frozen=True)
class Predictions:
    """Scored rows in the order of the input.

    ``extra`` holds further columns of the same length. Known names: ``group`` (rows that share a prompt),
    ``n_turns``, ``n_tokens``, ``share_cut`` (share of the conversation left out of the prompt), ``model_a``,
    ``model_b``, ``identical_answers``, :data:`SWAP_COLUMNS` for rows scored with swapped responses,
    :data:`RAW_COLUMNS`, :data:`FORM_COLUMNS`, :data:`BASELINE_COLUMNS`, and ``both_orders`` (averages of
    several models: whether all of them scored both orders of the responses).
    """

    ids: Sequence[str]
    folds: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    """``[n, 3]`` in LABELS order."""
    labels: NDArray[np.int64]
    """``[n]``, index into LABELS, or :data:`UNLABELLED`."""
    extra: Mapping[str, Sequence[Any] | NDArray[Any]] = field(default_factory=dict)

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
        named = self.extra.get("group", [None] * len(self))
        return [f"id {id}" if name is None else str(name) for id, name in zip(self.ids, named, strict=True)]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Mask ``[n]`` of rows whose outcome is known."""
        return np.asarray(self.labels != UNLABELLED)

    def take(self, index: NDArray[Any]) -> Predictions:
        """The rows that a mask ``[n]`` or an array of positions selects."""
        positions: list[int] = np.arange(len(self))[index].tolist()
        return Predictions(
            [self.ids[i] for i in positions],
            self.folds[positions],
            self.probabilities[positions],
            self.labels[positions],
            {name: [values[i] for i in positions] for name, values in self.extra.items()},
        )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several folds, one after the other; a column that one part lacks is None there."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.extra)
    return Predictions(
        [id for part in parts for id in part.ids],
        np.concatenate([part.folds for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {
            name: [value for part in parts for value in part.extra.get(name, [None] * len(part))]
            for name in names
        },
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write ``predictions.parquet``; unknown labels and NaN in further columns become null."""
    p = predictions.probabilities.astype(np.float32)
    columns: dict[str, Any] = {
        "id": pa.array([str(id) for id in predictions.ids], pa.string()),
        "fold": pa.array(predictions.folds.astype(np.int32)),
        **{f"p_{name}": pa.array(p[:, k]) for k, name in enumerate(LABELS)},
        "label": pa.array(predictions.labels.astype(np.int32), mask=~predictions.labelled),
        **{name: pa.array(values, from_pandas=True) for name, values in predictions.extra.items()},
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` wrote; UserError if the file is missing or lacks a column."""
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


def read_labelled(runs: Sequence[Run]) -> Predictions | None:
    """Read the labelled predictions of several runs that have any, one after the other; None: no run has."""
    found = [read_predictions(run.predictions) for run in runs if run.predictions.is_file()]
    labelled = [each.take(each.labelled) for each in found if each.labelled.any()]
    return concatenate(labelled) if labelled else None


def write_submission(path: Path, predictions: Predictions) -> None:
    """Write ``submission.csv`` in the order of the input; each row sums to 1. Ids must be unique."""
    double = repeated_ids(predictions.ids)
    if double:
        raise UserError(f"{format_ids(double)}: predicted more than once. A submission holds every id once.")
    p = predictions.probabilities.astype(np.float64)
    table = pd.DataFrame(p / p.sum(axis=1, keepdims=True), list(predictions.ids), SUBMISSION_COLUMNS[1:])
    with replacing(path) as temporary:
        table.to_csv(temporary, index_label=SUBMISSION_COLUMNS[0], lineterminator="\n")


def adjusted(predictions: Predictions, probabilities: NDArray[Any]) -> Predictions:
    """Replace the probabilities by calibrated or stacked ones, and keep the model's own as RAW_COLUMNS."""
    raw = predictions.probabilities.T
    extra = {**predictions.extra, **dict(zip(RAW_COLUMNS, raw, strict=True))}
    return dataclasses.replace(predictions, probabilities=probabilities.astype(np.float32), extra=extra)


def unadjusted(predictions: Predictions) -> Predictions:
    """The predictions with the model's own probabilities: the inverse of :func:`adjusted`."""
    if RAW_COLUMNS[0] not in predictions.extra:
        return predictions
    raw = np.column_stack([predictions.extra[name] for name in RAW_COLUMNS]).astype(np.float32)
    extra = {name: values for name, values in predictions.extra.items() if name not in RAW_COLUMNS}
    return dataclasses.replace(predictions, probabilities=raw, extra=extra)


def with_columns(
    predictions: Predictions, names: Sequence[str], probabilities: NDArray[np.float64] | None
) -> Predictions:
    """Add probabilities ``[n, 3]``, if there are any, as three columns."""
    if probabilities is None:
        return predictions
    columns = dict(zip(names, probabilities.astype(np.float32).T, strict=True))
    return dataclasses.replace(predictions, extra={**predictions.extra, **columns})


def stored_columns(predictions: Predictions, names: Sequence[str]) -> NDArray[np.float64] | None:
    """The probabilities ``[n, 3]`` of three columns, or None if a row has none."""
    if any(name not in predictions.extra for name in names):
        return None
    stored = np.array([predictions.extra[name] for name in names], dtype=np.float64).T
    return None if np.isnan(stored).any() else stored


def with_swap(
    predictions: Predictions, swapped: NDArray[Any], where: NDArray[Any] | None = None
) -> Predictions:
    """Average each row with its prediction for swapped responses, and keep both as :data:`SWAP_COLUMNS`.

    ``swapped`` ``[m, 3]`` holds the probabilities as the model gave them; here they are returned to the
    original order, so that ``p_swap_a`` and ``p_a`` refer to one response. When only the rows at positions
    ``where`` ``[m]`` were scored twice, the others keep their probabilities and have NaN as ``p_swap_*``.
    """
    positions = np.arange(len(predictions)) if where is None else np.asarray(where)
    forward = predictions.probabilities.astype(np.float32)
    back = np.full_like(forward, np.nan)
    back[positions] = np.asarray(swapped, dtype=np.float32)[:, [1, 0, 2]]
    average = np.where(np.isnan(back), forward, (forward + back) / 2)
    both = np.hstack([forward, back]).astype(np.float64)
    extra = {**predictions.extra, **dict(zip(SWAP_COLUMNS, both.T, strict=True))}
    return dataclasses.replace(predictions, probabilities=average, extra=extra)


def swap_views(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Probabilities ``[m, 3]`` of rows scored in both orders, forward and swapped, in original order."""
    if any(name not in predictions.extra for name in SWAP_COLUMNS):
        return None
    both = np.array([predictions.extra[name] for name in SWAP_COLUMNS], dtype=np.float64)
    forward, swapped = np.split(both[:, ~np.isnan(both).any(axis=0)].T, 2, axis=1)
    return (forward, swapped) if len(forward) else None


def one_order(predictions: Predictions) -> NDArray[np.float64]:
    """``[n]``: 1 where only the given order of the responses was scored, 0 where both were, and averaged."""
    unknown = [None] * len(predictions)
    averages = predictions.extra.get("both_orders", unknown)
    swapped = predictions.extra.get(SWAP_COLUMNS[-1], unknown)
    both = [flag or (p is not None and p == p) for flag, p in zip(averages, swapped, strict=True)]
    return 1.0 - np.array(both, dtype=np.float64)


def least_certain(probabilities: NDArray[Any], share: float) -> NDArray[np.int64]:
    """Positions, ascending, of the share of rows whose most probable outcome is least probable.

    >>> least_certain(np.array([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.5, 0.5, 0.0]]), 0.34).tolist()
    [1]
    """
    count = round(share * len(probabilities))
    return np.sort(by_certainty(probabilities)[:count])


def by_certainty(probabilities: NDArray[Any]) -> NDArray[np.int64]:
    """All positions, the row whose most probable outcome is least probable first."""
    return np.argsort(probabilities.max(axis=1), kind="stable").astype(np.int64)


def repeated_ids(ids: Sequence[str]) -> list[str]:
    """Ids that occur more than once, in order of first appearance."""
    return [id for id, count in Counter(ids).items() if count > 1]


def format_ids(ids: Sequence[str]) -> str:
    """The first ids and the number of the others, for messages.

    >>> format_ids([str(k) for k in range(12)])
    'ids 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    more = len(ids) - _LISTED_IDS
    names = ", ".join(ids[:_LISTED_IDS])
    return f"{'id' if len(ids) == 1 else 'ids'} {names}" + (f" and {more} more" if more > 0 else "")
