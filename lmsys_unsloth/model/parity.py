"""Comparison of the fast decoder with the reference decoder on a few rows before it is used."""

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
"""Number of rows that are compared: the shortest ones."""

TOLERANCE = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (0.08, 0.2), torch.float16: (0.08, 0.2)}
"""Largest relative distances of hidden states and of gradients that rounding can explain, by dtype.

Measured with SmolLM2 in bfloat16: 0.015 and 0.04, as far as either decoder is from float32. Mistakes give
more: an attention scale 25% too large 0.14 and 0.65, rows that attend to each other 0.33 and 0.69, no
positions 0.40 and 0.98.
"""


def choose_decoder(
    model: nn.Module, rows: Sequence[EncodedRow], *, fast: bool, training: bool = False
) -> Decoder:
    """Return the fast decoder if it is wanted and agrees with the reference decoder, else the latter.

    The fast one calls unsloth's kernels and recent PyTorch attention; versions of these that were not tested
    could fail or compute something else. Then a warning is logged and the run continues, more slowly.
    They are compared on the shortest ``rows``, in ``training`` by the adapters' gradients too.
    """
    reference = loading.make_decoder(model, fast=False)
    if not fast or not rows:
        return reference
    shortest = sorted((row.input_ids for row in rows), key=len)[:ROWS]
    batch = collate(shortest, [target(None, None)] * len(shortest)).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        decoder = loading.make_decoder(model, fast=True)
        found = parity_distances(decoder, reference, batch, gradients=training)
    except Exception as error:
        log.warning("the fast decoder failed (%s: %s); it is not used", type(error).__name__, error)
        return reference
    finally:
        model.train(was_training)
    text = " and ".join(f"{distance:.1e}" for distance in found)
    if not all(d <= most for d, most in zip(found, TOLERANCE[compute_dtype(model)], strict=False)):
        log.warning(
            "the fast decoder disagrees with the model's own forward pass (relative distance %s); "
            "it is not used", text,
        )  # fmt: skip
        return reference
    log.info("the fast decoder agrees with the model's own forward pass (relative distance %s)", text)
    return decoder


def parity_distances(decoder: Decoder, reference: Decoder, batch: Batch, *, gradients: bool) -> list[float]:
    """Return the largest of the rows' ``|a - b| / |b|``, Euclidean norms of their hidden states.

    With ``gradients`` that of all adapters' gradients together is returned too.
    """
    results = [_states_and_gradients(each, batch, gradients) for each in (decoder, reference)]
    return [float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max()) for a, b in zip(*results, strict=True)]


def _states_and_gradients(decoder: Decoder, batch: Batch, gradients: bool) -> list[Tensor]:
    """Hidden states ``[rows, width]``; optionally also gradients ``[1, n]`` of a weighted sum of them."""
    with torch.set_grad_enabled(gradients):
        states = decoder(batch.input_ids, batch.lengths).squeeze(1).float()
    if not gradients:
        return [states]
    decoder.model.zero_grad()
    weights = torch.linspace(-1, 1, states.shape[-1], device=states.device)
    (states * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = [p.grad.float().flatten() for p in decoder.model.parameters() if p.grad is not None]
    decoder.model.zero_grad()
    return [states.detach(), torch.cat(found)[None]]
