"""Encoded rows to predictions, for trained and untrained models alike."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.schema import EvalConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.evaluate import predictions
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scores import ScoringSpeed
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.answer_head import answer_head, average_orders, outcome_probabilities
from lmsys_unsloth.model.batch import Batch, by_length, collate, share_out, target
from lmsys_unsloth.model.decoder import Decoder
from lmsys_unsloth.model.parity import FallbackDecoder, choose_decoder
from lmsys_unsloth.prompting.encoding import EncodedRow, encode_cached
from lmsys_unsloth.prompting.prepared import Prepared

log = logging.getLogger(__name__)


def score_rows(decoder: Decoder, rows: Sequence[EncodedRow], tokens_per_batch: int) -> NDArray[np.float32]:
    """Score rows with the head attached to the model, each in its own order of the responses.

    Returns:
        Probabilities ``[rows, 3]`` in ``LABELS`` order, float32, in input order; each row sums to 1.
    """
    return _to_probabilities(answer_logits(decoder, rows, tokens_per_batch))


@torch.no_grad()
def answer_logits(decoder: Decoder, rows: Sequence[EncodedRow], tokens_per_batch: int) -> Tensor:
    """Compute the logits of the three or four answers in batches of similar length.

    A batch has at most ``tokens_per_batch`` tokens with padding. The logits, float32 ``[rows, answers]``, are
    in input order, and on the CPU. If the fast decoder fails, this batch and all later ones are computed by
    the reference decoder. Each rank computes a share of the rows, and gets the logits of all.
    """
    model, in_use = (
        decoder.model,
        decoder if isinstance(decoder, FallbackDecoder) else FallbackDecoder(decoder),
    )
    was_training = model.training
    model.eval()
    group, device, freed = ranks.current(), next(model.parameters()).device, memory.Releaser()
    lengths = [len(row.input_ids) for row in rows]
    own = share_out(lengths, group.size)[group.rank]
    result = torch.zeros(len(rows), len(answer_head(model).answer_ids))
    with progress("scoring", len(own), "row") as bar:
        for batch_of_own in by_length([lengths[row] for row in own], tokens_per_batch):
            chosen = [own[number] for number in batch_of_own]
            ids = [rows[row].input_ids for row in chosen]
            batch = collate(ids, [target(None, None)] * len(chosen)).to(device)
            result[chosen] = in_use.run(functools.partial(_batch_logits, in_use, batch)).cpu()
            bar.advance(len(chosen))
            freed.release()
    model.train(was_training)
    group.add(result)  # every row is zero on all ranks but one
    return result


def tokens_per_batch(config: EvalConfig) -> int:
    """Return the maximum number of tokens of a batch, padding included, as ``eval.tokens_per_batch`` says."""
    if config.tokens_per_batch == "auto":
        return 32768 if torch.cuda.is_available() else 8192
    return config.tokens_per_batch


def _to_probabilities(logits: Tensor) -> NDArray[np.float32]:
    return np.asarray(outcome_probabilities(logits).numpy(), dtype=np.float32)


def _batch_logits(decoder: Decoder, batch: Batch) -> Tensor:
    """Logits of a batch; the batch is split in half as often as memory demands."""
    try:
        return answer_head(decoder.model).logits(decoder, batch)
    except RuntimeError as error:
        if len(batch) == 1 or not memory.is_out_of_memory(error):
            raise
    parts = batch.split(batch.padded_tokens // 2)
    log.warning(
        "out of memory with %d tokens in a batch: scored in %d parts", batch.padded_tokens, len(parts)
    )
    return torch.cat([_batch_logits(decoder, part) for part in parts])


def predict_rows(model: nn.Module, prepared: Prepared, config: Config) -> tuple[Predictions, ScoringSpeed]:
    """Score the prepared rows, and score them again with swapped responses where ``eval.swap`` says so.

    Where both orders were scored, the predictions are averages of their probabilities, or, with
    ``head=davidson``, of their logits.

    Returns:
        Predictions, and the speed.
    """
    rows, encoder = prepared.scored, prepared.encoder
    decoder = FallbackDecoder(choose_decoder(model, rows, fast=config.train.fast))
    tokens, swap = tokens_per_batch(config.eval), config.eval.swap
    started = time.perf_counter()
    logits = answer_logits(decoder, rows, tokens)
    probabilities = _to_probabilities(logits)
    seconds = time.perf_counter() - started
    predicted = _to_predictions(rows, probabilities, prepared.folds, prepared.groups)
    if swap == "none":
        return predicted, _speed(rows, seconds)
    share = config.eval.swap_share if swap == "uncertain" else 1.0
    where = predictions.least_certain(probabilities, share)
    swapped_rows = ranks.current().run_first(
        lambda: encode_cached(encoder, [rows[i].comparison.swapped() for i in where], progress=True)
    )
    started = time.perf_counter()
    swapped = answer_logits(decoder, swapped_rows, tokens)
    swap_seconds = time.perf_counter() - started
    speed = _speed([*rows, *swapped_rows], seconds + swap_seconds)
    if swap == "uncertain":
        saved = max(0.0, seconds - swap_seconds)
        speed = dataclasses.replace(speed, swap_seconds=swap_seconds, swap_seconds_saved=saved)
        log.info(
            "%d of %d rows scored with swapped responses too: %.1f s instead of about %.1f s for all",
            len(where), len(rows), swap_seconds, seconds,
        )  # fmt: skip
    predicted = predictions.with_swap(predicted, _to_probabilities(swapped), where)
    if config.head.kind == "davidson":  # eval.swap is "average", so every row was scored in both orders
        averaged = _to_probabilities(average_orders(logits, swapped))
        predicted = dataclasses.replace(predicted, probabilities=averaged)
    return predicted, speed


def _speed(scored: Sequence[EncodedRow], seconds: float) -> ScoringSpeed:
    return ScoringSpeed(
        seconds=seconds,
        rows_per_second=len(scored) / seconds,
        tokens_per_second=sum(len(row.input_ids) for row in scored) / seconds,
        peak_memory_gb=memory.peak_gb(),
    )


def _to_predictions(
    encoded: Sequence[EncodedRow],
    probabilities: NDArray[np.float32],
    folds: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
) -> Predictions:
    """Combine probabilities with properties of the rows, by which the report slices them."""
    rows = [row.comparison for row in encoded]
    extra: dict[str, Sequence[Any]] = {
        "n_turns": [len(row.prompts) for row in rows],
        "n_tokens": [len(row.input_ids) for row in encoded],
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
        labels=predictions.label_array(rows),
        extra=extra,
    )
