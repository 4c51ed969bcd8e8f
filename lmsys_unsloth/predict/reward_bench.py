"""Accuracy on benchmarks of reward models: pairs of a chosen and a rejected response."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data import readers
from lmsys_unsloth.data.cells import Problem
from lmsys_unsloth.evaluate.bootstrap import Interval, bootstrap_interval
from lmsys_unsloth.predict.conversations import is_messages


@dataclass(frozen=True)
class SubsetScore:
    """Accuracy on some of the pairs."""

    accuracy: float
    """Share of pairs in which the chosen response is more probable to be preferred than the rejected one;
    equal probabilities count half."""
    pairs: int


@dataclass(frozen=True)
class BenchmarkScore:
    """Accuracy on a benchmark of chosen and rejected responses."""

    accuracy: float
    """Over all pairs, as :attr:`SubsetScore.accuracy`."""
    accuracy_ci: Interval | None
    """95% bootstrap interval; None for a single pair."""
    pairs: int
    subsets: Mapping[str, SubsetScore]
    """By the column ``subset``, in order of appearance; empty without that column."""
    mean_of_subsets: float | None
    """Unweighted mean of the subsets' accuracies."""


Predict = Callable[[Iterable[Mapping[str, Any]]], NDArray[np.float32]]


def score_reward_bench(file: str, predict: Predict, *, both_orders: bool, split: str) -> BenchmarkScore:
    """Score every pair of a file, as ``Predictor.score_reward_bench`` describes."""
    pairs, subsets = read_pairs(file, split)
    if both_orders:
        forward = predict(_row(pair, chosen_first=True) for pair in pairs)
        back = predict(_row(pair, chosen_first=False) for pair in pairs)
        margin = forward[:, 0] - forward[:, 1] + back[:, 1] - back[:, 0]
    else:
        found = predict(_row(pair, chosen_first=n % 2 == 0) for n, pair in enumerate(pairs))
        margin = (found[:, 0] - found[:, 1]) * np.where(np.arange(len(pairs)) % 2, -1, 1)
    right = (np.sign(margin.astype(np.float64)) + 1) / 2
    named = np.array(subsets, dtype=object)
    parts = {
        name: SubsetScore(float(right[named == name].mean()), int((named == name).sum()))
        for name in dict.fromkeys(subset for subset in subsets if subset is not None)
    }
    mean = float(np.mean([part.accuracy for part in parts.values()])) if parts else None
    interval = bootstrap_interval(right, np.arange(len(right)))
    return BenchmarkScore(float(right.mean()), interval, len(right), parts, mean)


def read_pairs(file: str, split: str) -> tuple[list[tuple[Any, Any, Any]], list[str | None]]:
    """Read prompt, chosen and rejected of every pair, and the subset of each.

    Raises:
        UserError: the file can't be read, has no row, or a row lacks a text; with the first such rows.
    """
    pairs, subsets, problems = [], list[str | None](), []
    _, records = readers.open_source(file, split)
    for number, record in records:
        if isinstance(record, Problem):
            problems.append(f"row {number}: {record.detail}")
            continue
        missing = [name for name in readers.PAIRS if not record.get(name)]
        if missing:
            problems.append(f"row {number}: lacks {', '.join(missing)}")
            continue
        chosen, rejected = (_parsed(record[name]) for name in readers.PAIRS)
        prompt = _parsed(record.get("prompt"))
        if _is_conversation(chosen) and _is_conversation(rejected):
            prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
        if not prompt:
            problems.append(f"row {number}: lacks prompt")
            continue
        pairs.append((prompt, chosen, rejected))
        subsets.append(None if record.get("subset") is None else str(record["subset"]))
    if problems or not pairs:
        shown = problems[:5] or ["it has no rows"]
        raise UserError(
            "\n  ".join([f"{file}: not a file of pairs ({', '.join(('prompt', *readers.PAIRS))}):", *shown])
        )
    return pairs, subsets


def _row(pair: Sequence[Any], *, chosen_first: bool) -> dict[str, Any]:
    prompt, chosen, rejected = pair
    first, second = (chosen, rejected) if chosen_first else (rejected, chosen)
    return {"prompt": prompt, "response_a": first, "response_b": second}


def _parsed(cell: Any) -> Any:
    """A CSV file holds lists of messages as JSON text; every other text stays as it is."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("[{"):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _is_conversation(value: Any) -> bool:
    """Whether it is a list of messages that begins with the user's, not with a response."""
    return is_messages(value) and len(value) > 1
