"""Before the fast decoder is used, it must say on a few rows what the model's own forward says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from lmsys_unsloth import models
from lmsys_unsloth.batches import AnswerIds, collate, target
from lmsys_unsloth.decoder import Decoder, compute_dtype
from lmsys_unsloth.forward import answer_probabilities
from lmsys_unsloth.prompting.tokens import EncodedRow

log = logging.getLogger(__name__)

ROWS = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Largest difference of a probability that rounding can explain. A wrong mask, scale or cap exceeds it."""


@torch.no_grad()
def agreeing_decoder(
    model: nn.Module, rows: Sequence[EncodedRow], answer_ids: AnswerIds, *, fast: bool
) -> Decoder:
    """The decoder to use: the fast one, if wanted, and if it agrees with the other on the shortest rows.

    It calls into unsloth's kernels and PyTorch's newest attention, so a version that was not tested here
    could fail or compute something else. Then the run goes on, slower, with the model's own forward.
    """
    ordinary = models.decoder(model, fast=False)
    if not fast or not rows:
        return ordinary
    shortest = sorted((row.input_ids for row in rows), key=len)[:ROWS]
    batch = collate(shortest, [target(None, None)] * len(shortest)).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        quick = models.decoder(model, fast=True)
        expected = answer_probabilities(ordinary, batch, answer_ids)
        difference = float((answer_probabilities(quick, batch, answer_ids) - expected).abs().max())
    except Exception as error:
        log.warning("the fast path failed (%s: %s); going on without it", type(error).__name__, error)
        return ordinary
    finally:
        model.train(was_training)
    if not difference <= TOLERANCE[compute_dtype(model)]:
        log.warning(
            "the fast path says something else than the model itself (a probability differs by %.1e); "
            "going on without it", difference,
        )  # fmt: skip
        return ordinary
    log.info("the fast path agrees with the model's own forward: probabilities differ by %.1e", difference)
    return quick
