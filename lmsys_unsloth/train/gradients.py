"""Gradients of an optimiser step: summed over the ranks, and checked after the first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError

SHOWN_IDS = 20
"""Number of rows that an error names."""


def add_gradients(weights: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace each gradient by its sum over all ranks, and return the sum of the losses.

    A rank whose share of the step is empty has no gradients. A weight without a gradient on every rank keeps
    none, so that the optimiser leaves it alone as it does in one process. One sum over a float32 buffer is
    made, of 4 bytes per trained weight.
    """
    group, weights = ranks.current(), list(weights)
    if group.size == 1:
        return loss
    used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
    group.add(used)
    weights = [weight for weight, count in zip(weights, used.tolist(), strict=True) if count]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    buffer = torch.cat([loss.detach().float().reshape(1), *(each.float().flatten() for each in gradients)])
    group.add(buffer)
    parts = torch.split(buffer[1:], [weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad = part.view_as(weight).to(weight.dtype)
    return buffer[0]


@torch.no_grad()
def copy_from_first(weights: Iterable[nn.Parameter]) -> None:
    """Copy the first rank's weights to all ranks."""
    group, weights = ranks.current(), list(weights)
    if group.size == 1:
        return
    buffer = torch.cat([weight.float().flatten() for weight in weights])
    if not group.first:
        buffer.zero_()
    group.add(buffer)
    if not group.first:
        parts = torch.split(buffer, [weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part.view_as(weight))


def seed_step(seed: int, step: int) -> None:
    """Where there are several ranks, give each one random numbers of its own for dropout and noise.

    They depend on the seed, the step and the rank only, so that a resumed run needs no state of them.
    """
    group = ranks.current()
    if group.size > 1:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, group.rank]).generate_state(1)[0]))


def check_gradients(model: nn.Module, loss: float) -> None:
    """Check after the first step that the gradients are finite, and not all zero within the layers.

    LoRA's A receives no gradient in the first step because B starts at zero; B must receive one. The answer
    head receives one even if the layers do not.

    Raises:
        UserError: gradients are not finite, or all those of B, or of fully trained layers, are zero.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    infinite = [name for name, g in gradients.items() if g is not None and not g.isfinite().all()]
    inside = {name: g for name, g in gradients.items() if "answer_head" not in name and "lora_A" not in name}
    moved = sum(bool(g.any()) for g in inside.values() if g is not None)
    if infinite or loss != loss:
        raise UserError(
            f"first training step: loss {loss}, gradients not finite in {len(infinite)} of {len(gradients)} "
            f"trained tensors ({', '.join(infinite[:3])} …).\n"
            "  float16 overflows in Gemma: use model.dtype=bfloat16, or float32 on a CPU."
        )
    if not moved:
        raise UserError(
            f"first training step: loss {loss:.4f}, but every gradient within the layers is zero "
            f"({len(missing)} of {len(gradients)} tensors have none), so nothing would be learned.\n"
            "  The loss does not reach the trained weights: check lora.target_modules and lora.first_layer, "
            "and that unsloth, trl and transformers have the pinned versions (env.json names them)."
        )


def not_finite(first: int, last: int, loss: float, ids: Sequence[str], run: Run) -> UserError:
    """Return the error of a loss or weights that are not finite, found after steps ``first`` to ``last``."""
    shown = ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")
    saved = run.newest_checkpoint()
    good = (
        "There is no checkpoint yet"
        if saved is None
        else f"The last good checkpoint is {run.checkpoint(saved)}"
    )
    steps = f"step {last}" if first >= last else f"steps {first} to {last}"
    return UserError(
        f"training {steps}: loss {loss}, of the rows {shown}.\n"
        f"  {good}; nothing was saved since. Look at these rows, lower train.learning_rate, or use "
        "model.dtype=bfloat16 (float32 on a CPU)."
    )
