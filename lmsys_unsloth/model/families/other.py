"""A check of models that the fast decoder does not compute: any causal language model of ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model.decoder import ReferenceDecoder, compute_dtype
from lmsys_unsloth.model.families.model_folder import stored_tensors
from lmsys_unsloth.model.lm_head import head_logits

ACCEPTED = {torch.float32: 1e-3}
"""Largest difference of a logit that rounding explains, relative to the largest logit, by dtype."""
ACCEPTED_16BIT = 0.1
"""The same for bfloat16 and float16: 4-bit kernels round differently for other numbers of tokens."""


def check_own_logits(model: nn.Module, folder: Path) -> None:
    """Check that the logits of a loaded model are what this project computes, for classes it does not know.

    The model's own logits of a row are compared with those of the LM head's weights on the states of
    :class:`~lmsys_unsloth.model.decoder.ReferenceDecoder`, in a batch with a longer row: a head with a bias
    or a scale, or a model that is not causal, would give other probabilities.

    Args:
        model: a transformers model without adapters.
        folder: the model's files.

    Raises:
        UserError: the logits differ, or the LM head is neither tied to the embeddings nor stored.
    """
    base = cast(Any, model)
    kind, head = base.config.model_type, base.get_output_embeddings()
    if head is None:
        raise UserError(f"model_type = {kind}: has no LM head, so it is not a causal language model")
    embeddings = base.get_input_embeddings()
    # Names in files differ from those in the class, shapes do not.
    alike = [tensor for tensor in stored_tensors(folder).values() if tensor.shape == tuple(head.weight.shape)]
    needed = len({id(part.weight) for part in (head, embeddings) if part.weight.shape == head.weight.shape})
    if len(alike) < needed:
        raise UserError(
            f"{folder}: the LM head or the embeddings are not among the weights, so they were initialised at "
            "random; download the model again"
        )
    was_training = base.training
    base.eval()
    with torch.no_grad():
        device = head.weight.device
        row = torch.arange(8, device=device) % head.weight.shape[0]
        longer = torch.arange(12, device=device).flip(0) % head.weight.shape[0]
        states = ReferenceDecoder(model)(torch.cat([row, longer]), [len(row), len(longer)])
        found = head_logits(model, states[0, -1])
        in_bfloat16 = compute_dtype(model) == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            expected = base(input_ids=row[None], use_cache=False).logits[0, -1].float()
    base.train(was_training)
    distance = float((found - expected).abs().max() / expected.abs().max())
    biased = getattr(head, "bias", None) is not None
    if biased or not distance <= ACCEPTED.get(compute_dtype(model), ACCEPTED_16BIT):
        reason = "its LM head has a bias" if biased else f"its own logits differ by {distance:.1e}"
        raise UserError(
            f"model_type = {kind}: the answers' logits are computed as LM head times final states, but "
            f"{reason}; choose a model of another family (docs/models.md)"
        )
