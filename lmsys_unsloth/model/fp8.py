"""The fast decoder's frozen products in 8-bit floating point, if answers stay what they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lmsys_unsloth.model.answer_head import answer_head, form_offsets, outcome_probabilities
from lmsys_unsloth.model.batch import by_length, collate, target
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.layers import fp8
from lmsys_unsloth.prompting.encoding import EncodedRow

log = logging.getLogger(__name__)

ROWS = 200
"""Number of rows that are compared."""

LARGEST_DIVERGENCE = 0.001
"""Largest accepted divergence, in nats: by as much log loss rises on average where the probabilities computed
from the weights themselves are the true ones."""

TOKENS_PER_BATCH = 8192


def use_fp8(decoder: FastDecoder, rows: Sequence[EncodedRow]) -> float | None:
    """Compute the frozen products of all layers in fp8 from now on, unless that changes answers too much.

    The probabilities of up to :data:`ROWS` of the rows are computed before and after. fp8 is given up, with a
    warning, if their mean Kullback–Leibler divergence exceeds :data:`LARGEST_DIVERGENCE`, or if it fails. The
    model's own forward pass never uses fp8.

    Args:
        decoder: of a model with its answer head.
        rows: encoded rows; labels are not used.

    Returns:
        The divergence, in nats; None if there are no rows, or if fp8 failed.
    """
    compared = [rows[int(i)] for i in torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round()]
    before = _probabilities(decoder, compared)
    try:
        trained = any(parameter.requires_grad for parameter in decoder.model.parameters())
        for index, layer in enumerate(decoder.layers):
            fp8.attach([layer], backward=trained and index >= decoder.first_trained)
        after = _probabilities(decoder, compared)
    except Exception as error:  # a GPU or a version of PyTorch without the product, sizes that do not suit it
        fp8.detach(decoder.layers)
        log.warning("model.resident=fp8 is not used, as it failed (%s: %s)", type(error).__name__, error)
        return None
    if not compared:
        return None
    divergence = mean_divergence(before, after)
    text = f"divergence {divergence:.5f} on {len(compared)} rows, accepted up to {LARGEST_DIVERGENCE}"
    if divergence <= LARGEST_DIVERGENCE:
        log.info("frozen products in fp8: %s", text)
    else:  # also where it is not a number
        fp8.detach(decoder.layers)
        log.warning("model.resident=fp8 is not used, as it changes answers too much: %s", text)
    return divergence


def mean_divergence(true: Tensor, found: Tensor) -> float:
    """Compute the mean of Σ p log(p / q) over probabilities p = ``true``, q = ``found``, ``[rows, 3]``."""
    p, q = true.double(), found.double()
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=1).mean())


@torch.no_grad()
def _probabilities(decoder: FastDecoder, rows: Sequence[EncodedRow]) -> Tensor:
    """Probabilities ``[rows, 3]`` of the outcomes, on the CPU, in an order of their own."""
    model, found = decoder.model, []
    head, device, was_training = answer_head(model), next(model.parameters()).device, model.training
    model.eval()
    for chosen in by_length([len(row.input_ids) for row in rows], TOKENS_PER_BATCH):
        ids = [rows[row].input_ids for row in chosen]
        offsets = form_offsets(head, [rows[row] for row in chosen])
        batch = collate(ids, [target(None, None)] * len(ids), offsets=offsets).to(device)
        found.append(outcome_probabilities(head.logits(decoder, batch)).float().cpu())
    model.train(was_training)
    return torch.cat([torch.empty(0, 3), *found])
