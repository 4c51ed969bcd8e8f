"""Encoded rows to predictions, for trained and untrained models alike."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.progress import progress
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate import predictions
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scores import ScoringSpeed
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.answer_head import answer_probabilities
from lmsys_unsloth.model.batch import Batch, by_length, collate, target
from lmsys_unsloth.model.decoder import Decoder
from lmsys_unsloth.model.parity import choose_decoder
from lmsys_unsloth.prompting.answer_tokens import AnswerIds
from lmsys_unsloth.prompting.encoding import EncodedRow, encode_cached
from lmsys_unsloth.prompting.prepared import Prepared

log = logging.getLogger(__name__)


@torch.no_grad()
def score_rows(
    decoder: Decoder, rows: Sequence[EncodedRow], answer_ids: AnswerIds, tokens_per_batch: int
) -> NDArray[np.float32]:
    """Score rows in batches of similar length, at most ``tokens_per_batch`` tokens with padding.

    Returns:
        Probabilities ``[rows, 3]`` in ``LABELS`` order, float32, in input order; each row sums to 1.
    """
    model = decoder.model
    was_training = model.training
    model.eval()
    device, freed = next(model.parameters()).device, memory.Releaser()
    result = np.zeros((len(rows), len(LABELS)), dtype=np.float32)
    with progress("scoring", len(rows), "row") as bar:
        for chosen in by_length([len(row.input_ids) for row in rows], tokens_per_batch):
            ids = [rows[row].input_ids for row in chosen]
            batch = collate(ids, [target(None, None)] * len(chosen)).to(device)
            result[list(chosen)] = _probabilities(decoder, batch, answer_ids).cpu().numpy()
            bar.advance(len(chosen))
            freed.release()
    model.train(was_training)
    return result


def _probabilities(decoder: Decoder, batch: Batch, answer_ids: AnswerIds) -> Tensor:
    """Probabilities of a batch; the batch is split in half as often as memory demands."""
    try:
        return answer_probabilities(decoder, batch, answer_ids)
    except RuntimeError as error:
        if len(batch) == 1 or not memory.is_out_of_memory(error):
            raise
    parts = batch.split(batch.padded_tokens // 2)
    log.warning(
        "out of memory with %d tokens in a batch: scored in %d parts", batch.padded_tokens, len(parts)
    )
    return torch.cat([_probabilities(decoder, part, answer_ids) for part in parts])


def predict_rows(model: nn.Module, prepared: Prepared, config: Config) -> tuple[Predictions, ScoringSpeed]:
    """Score the prepared rows, and score them again with swapped responses where ``eval.swap`` says so.

    Returns:
        Predictions (averaged over both orders for swapped rows), and the speed.
    """
    rows, encoder = prepared.scored, prepared.encoder
    decoder = choose_decoder(model, rows, fast=config.train.fast)
    tokens, swap = config.eval.tokens_per_batch, config.eval.swap
    started = time.perf_counter()
    probabilities = score_rows(decoder, rows, encoder.answer_ids, tokens)
    seconds = time.perf_counter() - started
    predicted = _to_predictions(rows, probabilities, prepared.folds, prepared.groups)
    if swap == "none":
        return predicted, _speed(rows, seconds)
    share = config.eval.swap_share if swap == "uncertain" else 1.0
    where = predictions.least_certain(probabilities, share)
    swapped_rows = encode_cached(encoder, [rows[i].comparison.swapped() for i in where], progress=True)
    started = time.perf_counter()
    swapped = score_rows(decoder, swapped_rows, encoder.answer_ids, tokens)
    swap_seconds = time.perf_counter() - started
    speed = _speed([*rows, *swapped_rows], seconds + swap_seconds)
    if swap == "uncertain":
        saved = max(0.0, seconds - swap_seconds)
        speed = dataclasses.replace(speed, swap_seconds=swap_seconds, swap_seconds_saved=saved)
        log.info(
            "%d of %d rows scored with swapped responses too: %.1f s instead of about %.1f s for all",
            len(where), len(rows), swap_seconds, seconds,
        )  # fmt: skip
    return predictions.with_swap(predicted, swapped, where), speed


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
