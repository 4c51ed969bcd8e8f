"""Before the fast decoder is used, it must say on a few rows what the model's own forward says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmsys_unsloth import models
from lmsys_unsloth.batches import collate, target
from lmsys_unsloth.decoder import Decoder, compute_dtype
from lmsys_unsloth.prompting.tokens import EncodedRow

log = logging.getLogger(__name__)

ROWS = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest distance between two hidden states, relative to their length, that rounding can explain.

SmolLM2 in bfloat16: 0.01, which is also each path's distance from float32. A wrong mask, scale or
position gives 0.3 and more.
"""


@torch.no_grad()
def agreeing_decoder(model: nn.Module, rows: Sequence[EncodedRow], *, fast: bool) -> Decoder:
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
        distance = _distance(*(decoder(batch.input_ids, batch.lengths) for decoder in (quick, ordinary)))
    except Exception as error:
        log.warning("the fast path failed (%s: %s); going on without it", type(error).__name__, error)
        return ordinary
    finally:
        model.train(was_training)
    if not distance <= TOLERANCE[compute_dtype(model)]:
        log.warning(
            "the fast path's hidden states are not those of the model's own forward (relative distance "
            "%.1e); going on without it", distance,
        )  # fmt: skip
        return ordinary
    log.info("the fast path agrees with the model's own forward (relative distance %.1e)", distance)
    return quick


def _distance(one: Tensor, other: Tensor) -> float:
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())
