"""Before the fast decoder is used, it must say on a few rows what the model's own forward says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmsys_unsloth.model import loading
from lmsys_unsloth.model.batch import Batch, collate, target
from lmsys_unsloth.model.decoder import Decoder, compute_dtype
from lmsys_unsloth.prompting.encoding import EncodedRow

log = logging.getLogger(__name__)

ROWS = 4
TOLERANCE = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (0.08, 0.2), torch.float16: (0.08, 0.2)}
"""Largest relative distances of hidden states and of gradients that rounding can explain.

SmolLM2 in bfloat16: 0.015 and 0.04; hidden states of both paths are as far from float32. Attention with a
scale 25% too large gives 0.14 and 0.65, rows that see each other 0.33 and 0.69, no positions 0.40 and 0.98.
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
    ordinary = loading.decoder(model, fast=False)
    if not fast or not rows:
        return ordinary
    shortest = sorted((row.input_ids for row in rows), key=len)[:ROWS]
    batch = collate(shortest, [target(None, None)] * len(shortest)).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        quick = loading.decoder(model, fast=True)
        apart = distances(quick, ordinary, batch, gradients=training)
    except Exception as error:
        log.warning("the fast path failed (%s: %s); going on without it", type(error).__name__, error)
        return ordinary
    finally:
        model.train(was_training)
    found = " and ".join(f"{distance:.1e}" for distance in apart)
    if not all(d <= most for d, most in zip(apart, TOLERANCE[compute_dtype(model)], strict=False)):
        log.warning(
            "the fast path does not compute what the model's own forward does (relative distance %s); "
            "going on without it", found,
        )  # fmt: skip
        return ordinary
    log.info("the fast path agrees with the model's own forward (relative distance %s)", found)
    return quick


def distances(one: Decoder, other: Decoder, batch: Batch, *, gradients: bool) -> list[float]:
    """How far two decoders of a model are apart, relative to the second's results.

    Returns:
        The largest distance of a row's hidden state and, if asked for, that of the adapters' gradients.
    """
    found = [_states_and_gradients(decoder, batch, gradients) for decoder in (one, other)]
    return [_distance(*pair) for pair in zip(*found, strict=True)]


def _states_and_gradients(decoder: Decoder, batch: Batch, wanted: bool) -> list[Tensor]:
    """Hidden states ``[rows, width]``; if wanted also the gradient of a weighted sum of them ``[1, n]``."""
    with torch.set_grad_enabled(wanted):
        states = decoder(batch.input_ids, batch.lengths).squeeze(1).float()
    if not wanted:
        return [states]
    decoder.model.zero_grad()
    weights = torch.linspace(-1, 1, states.shape[-1], device=states.device)
    (states * weights).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.float().flatten() for p in decoder.model.parameters() if p.grad is not None]
    decoder.model.zero_grad()
    return [states.detach(), torch.cat(gradients)[None]]


def _distance(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())
