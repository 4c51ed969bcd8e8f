"""Before the fast decoder is used, it must say on a few rows what the model's own forward says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmsys_unsloth import models
from lmsys_unsloth.batches import Batch, collate, target
from lmsys_unsloth.decoder import Decoder, compute_dtype
from lmsys_unsloth.prompting.tokens import EncodedRow

log = logging.getLogger(__name__)

ROWS = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}
"""Largest relative distance of hidden states and of gradients that rounding can explain.

SmolLM2 in bfloat16: 0.015 and 0.04; hidden states of both paths are as far from float32. A wrong mask,
scale or position gives 0.3 and more.
"""


def agreeing_decoder(
    model: nn.Module, rows: Sequence[EncodedRow], *, fast: bool, training: bool = False
) -> Decoder:
    """The decoder to use: the fast one, if wanted, and if it agrees with the other on the shortest rows.

    It calls into unsloth's kernels and PyTorch's newest attention, so a version that was not tested here
    could fail or compute something else. Then the run goes on, slower, with the model's own forward.

    Args:
        training: compare the adapters' gradients too.
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
        found = [_states_and_gradients(decoder, batch, training) for decoder in (quick, ordinary)]
        distance = max(_distance(*pair) for pair in zip(*found, strict=True))
    except Exception as error:
        log.warning("the fast path failed (%s: %s); going on without it", type(error).__name__, error)
        return ordinary
    finally:
        model.train(was_training)
    if not distance <= TOLERANCE[compute_dtype(model)]:
        log.warning(
            "the fast path does not compute what the model's own forward does (relative distance %.1e); "
            "going on without it", distance,
        )  # fmt: skip
        return ordinary
    log.info("the fast path agrees with the model's own forward (relative distance %.1e)", distance)
    return quick


def _states_and_gradients(decoder: Decoder, batch: Batch, training: bool) -> list[Tensor]:
    """Hidden states ``[rows, width]``; in training also the gradient of a weighted sum of them ``[1, n]``."""
    with torch.set_grad_enabled(training):
        states = decoder(batch.input_ids, batch.lengths).squeeze(1).float()
    if not training:
        return [states]
    decoder.model.zero_grad()
    weights = torch.linspace(-1, 1, states.shape[-1], device=states.device)
    (states * weights).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.float().flatten() for p in decoder.model.parameters() if p.grad is not None]
    decoder.model.zero_grad()
    return [states.detach(), torch.cat(gradients)[None]]


def _distance(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())
