"""Encoded rows to predictions, for trained and untrained models alike."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.schema import EvalConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.data.comparison import LABELS, label_array
from lmsys_unsloth.evaluate import predictions
from lmsys_unsloth.evaluate.passes.logits import answer_logits, own_share
from lmsys_unsloth.evaluate.passes.partial_scores import Order, PartialScores, ScoredBatches
from lmsys_unsloth.evaluate.passes.time_left import FIRST_SWAP_FACTOR, FirstPass, TimeLeft
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scores import ScoringSpeed
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.answer_head import average_orders, outcome_probabilities
from lmsys_unsloth.model.batch import split_by_budget
from lmsys_unsloth.model.decoder import Decoder
from lmsys_unsloth.model.parity import FallbackDecoder, choose_decoder
from lmsys_unsloth.prompting.encoded_rows import encode_cached, token_counts
from lmsys_unsloth.prompting.encoding import EncodedRow
from lmsys_unsloth.prompting.prepared import Prepared

log = logging.getLogger(__name__)


def score_rows(decoder: Decoder, rows: Sequence[EncodedRow], tokens_per_batch: int) -> NDArray[np.float32]:
    """Score rows with the head attached to the model, each in its own order of the responses.

    Returns:
        Probabilities ``[rows, 3]`` in ``LABELS`` order, float32, in input order; each row sums to 1.
    """
    return _to_probabilities(answer_logits(decoder, rows, tokens_per_batch))


def tokens_per_batch(config: EvalConfig) -> int:
    """Return the maximum number of tokens of a batch, padding included, as ``eval.tokens_per_batch`` says."""
    if config.tokens_per_batch == "auto":
        return 32768 if torch.cuda.is_available() else 8192
    return config.tokens_per_batch


def _to_probabilities(logits: Tensor) -> NDArray[np.float32]:
    return np.asarray(outcome_probabilities(logits).numpy(), dtype=np.float32)


def predict_rows(
    model: nn.Module,
    prepared: Prepared,
    config: Config,
    partial: PartialScores | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Predictions, ScoringSpeed]:
    """Score the prepared rows, and score them again with swapped responses where ``eval.swap`` says so.

    Where both orders were scored, the predictions are averages of their probabilities, or, with
    ``head=davidson``, of their logits.

    Args:
        model: model with a head.
        prepared: encoded rows.
        config: settings.
        partial: where an interrupted scoring left its results, and this one leaves them; None: nowhere.
        clock: seconds that only increase.

    Returns:
        Predictions, and the speed.
    """
    rows, settings = prepared.scored, config.eval
    decoder = FallbackDecoder(choose_decoder(model, rows, fast=is_fast(config), fp8=uses_fp8(config)))
    tokens, started = tokens_per_batch(settings), clock()
    budget = None if settings.time_budget is None else TimeLeft(settings.time_budget, clock)
    lengths = token_counts(rows)
    own = [lengths[row] for row in own_share(lengths)]
    with _opened(partial, "forward") as scored, progress("scoring", len(own), "row") as bar:
        watch = FirstPass(budget, own, bar.advance)
        logits = answer_logits(decoder, rows, tokens, scored, after_batch=watch.advance)
    seconds = clock() - started
    probabilities = _to_probabilities(logits)
    predicted = to_predictions(rows, probabilities, prepared.folds, prepared.groups)
    if settings.swap == "none":
        return predicted, _speed(lengths, seconds)
    started = clock()
    with _opened(partial, "swapped") as scored:

        def score(chosen: Sequence[int], encoded: Sequence[EncodedRow], bar: progress) -> Tensor:
            return answer_logits(decoder, encoded, tokens, scored, chosen, lambda rows, *_: bar.advance(rows))

        if budget is None:
            share = settings.swap_share if settings.swap == "uncertain" else 1.0
            where, swapped = _swap_share(prepared, predictions.least_certain(probabilities, share), score)
        else:
            order = predictions.by_certainty(probabilities)
            where, swapped = _swap_in_time(prepared, order, score, budget, tokens, seconds)
    swap_seconds = clock() - started
    speed = _speed([*lengths, *(lengths[i] for i in where)], seconds + swap_seconds)
    if settings.swap == "uncertain":
        saved = max(0.0, seconds - swap_seconds)
        speed = dataclasses.replace(
            speed, swap_seconds=swap_seconds, swap_seconds_saved=saved, swapped_rows=len(where)
        )
        log.info(
            "%d of %d rows scored with swapped responses too: %.1f s instead of about %.1f s for all",
            len(where), len(rows), swap_seconds, seconds,
        )  # fmt: skip
    return with_swapped(predicted, logits, swapped, where, config), speed


def is_fast(config: Config) -> bool:
    """Whether rows are scored by the fast decoder, where it knows the model."""
    return config.train.fast and config.engine.kind == "native"


def uses_fp8(config: Config) -> bool:
    """Whether the fast decoder is to compute frozen products in fp8."""
    return config.model.resident == "fp8"


def with_swapped(
    predicted: Predictions, logits: Tensor, swapped: Tensor, where: NDArray[np.int64], config: Config
) -> Predictions:
    """Average predictions with those of the rows at positions ``where``, scored with swapped responses.

    Args:
        predicted: of all rows in their own order.
        logits: ``[rows, answers]`` of all rows.
        swapped: ``[where, answers]`` of the swapped rows.
        where: ``[where]`` positions in ascending order.
        config: ``head`` decides whether probabilities or, for ``davidson``, logits are averaged.
    """
    averaged = predictions.with_swap(predicted, _to_probabilities(swapped), where)
    if config.head.kind == "davidson":  # eval.swap is "average", so every row was scored in both orders
        of_logits = _to_probabilities(average_orders(logits, swapped))
        return dataclasses.replace(averaged, probabilities=of_logits)
    return averaged


def _opened(partial: PartialScores | None, order: Order) -> AbstractContextManager[ScoredBatches | None]:
    return nullcontext() if partial is None else partial.opened(order)


Score = Callable[[Sequence[int], Sequence[EncodedRow], progress], Tensor]
"""Scores rows, which have these numbers, while a bar advances."""


def _swap_share(
    prepared: Prepared, where: NDArray[np.int64], score: Score
) -> tuple[NDArray[np.int64], Tensor]:
    """Score the rows at these positions with swapped responses; returns positions and logits."""
    rows = [prepared.scored[i].comparison.swapped() for i in where]
    encoded = ranks.current().run_first(lambda: encode_cached(prepared.encoder, rows, progress=True))
    own = len(own_share(token_counts(encoded)))
    with progress("scoring swapped rows", own, "row") as bar:
        return where, score(where.tolist(), encoded, bar)


def _swap_in_time(
    prepared: Prepared,
    order: NDArray[np.int64],
    score: Score,
    budget: TimeLeft,
    tokens: int,
    seconds: float,
) -> tuple[NDArray[np.int64], Tensor]:
    """Score swapped rows, the least certain first, batch by batch as long as the next one fits in the budget.

    Args:
        prepared: encoded rows.
        order: all positions, the least certain first.
        score: scores rows.
        budget: the time that is left.
        tokens: maximum tokens of a batch.
        seconds: duration of the first pass.

    Returns:
        Positions in ascending order, and logits.
    """
    rows, group = prepared.scored, ranks.current()
    lengths = token_counts(rows)
    # They have to be encoded, too.
    budget.expect(sum(lengths), seconds * FIRST_SWAP_FACTOR)
    units = [(row,) for row in order.tolist()]
    done: list[int] = []
    found: list[Tensor] = []
    with progress("scoring swapped rows", len(own_share(lengths)), "row") as bar:
        for batch in split_by_budget(units, lengths, tokens * group.size, rows_per_batch=len(rows)):
            size = sum(lengths[row] for row in batch)
            if group.any(not budget.fits(size)):
                break
            with budget.timed(size):
                encoded = prepared.encoder.encode([rows[row].comparison.swapped() for row in batch])
                found.append(score(batch, encoded, bar))
            done += batch
    logits = torch.cat([torch.empty(0, _answers(found)), *found])
    where = np.array(done, dtype=np.int64)
    return where[np.argsort(where)], logits[np.argsort(where)]


def _answers(logits: Sequence[Tensor]) -> int:
    return logits[0].shape[1] if logits else len(LABELS)


def _speed(lengths: Sequence[int], seconds: float) -> ScoringSpeed:
    return ScoringSpeed(
        seconds=seconds,
        rows_per_second=len(lengths) / seconds,
        tokens_per_second=sum(lengths) / seconds,
        peak_memory_gb=memory.peak_gb(),
    )


def to_predictions(
    encoded: Sequence[EncodedRow],
    probabilities: NDArray[np.float32],
    folds: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
) -> Predictions:
    """Combine probabilities with properties of the rows, by which the report slices them."""
    rows = [row.comparison for row in encoded]
    extra: dict[str, Sequence[Any]] = {
        "n_turns": [len(row.prompts) for row in rows],
        "n_tokens": token_counts(encoded),
        "share_cut": [row.share_cut for row in encoded],
        "model_a": [row.model_a for row in rows],
        "model_b": [row.model_b for row in rows],
        "identical_answers": [row.responses_a == row.responses_b for row in rows],
    }
    if groups is not None:
        extra["group"] = groups.astype(str).tolist()
    return Predictions(
        ids=[row.id for row in rows],
        folds=folds,
        probabilities=probabilities,
        labels=label_array(rows),
        extra=extra,
    )
