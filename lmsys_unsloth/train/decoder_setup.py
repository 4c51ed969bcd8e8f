"""What a decoder computes at once, keeps and computes again in training, as the free memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.decoder import Decoder, FastDecoder, ReferenceDecoder
from lmsys_unsloth.train.steps import Step, merge_micro_batches

FROZEN_STATES_SHARE = 0.25
"""Fraction of free memory that the states of frozen layers may use, to compute them once for all epochs."""

ACTIVATION_SHARE = 0.8
"""Fraction of free memory that activations may use; gradients, LM head and fragmentation need the rest."""


def set_up_decoder(
    decoder: Decoder, steps: Sequence[Step], lengths: Sequence[int], config: TrainConfig
) -> tuple[list[Step], str]:
    """Set checkpoints, noise and kept states of a decoder, and merge the micro-batches of steps.

    Args:
        decoder: decoder of the model that is trained.
        steps: this rank's share of the steps.
        lengths: ``[rows]`` tokens of each row.
        config: settings of the training.

    Returns:
        The steps to compute, and the choice of checkpoints in words.
    """
    merged = list(steps)
    auto = config.tokens_per_micro_batch == "auto" and torch.cuda.is_available()
    if isinstance(decoder, FastDecoder) and auto:
        merged = merge_as_memory_allows(steps, decoder, lengths)
    checkpoints = _set_checkpoints(decoder, config, merged, lengths)
    if isinstance(decoder, FastDecoder):
        _set_up_frozen_layers(decoder, config, lengths)
    return merged, checkpoints


def merge_as_memory_allows(steps: Sequence[Step], decoder: FastDecoder, lengths: Sequence[int]) -> list[Step]:
    """Merge micro-batches within each step as far as all their activations fit into memory."""
    fit = decoder.max_micro_batch_tokens(max(lengths), ACTIVATION_SHARE * memory.free_bytes())
    return [merge_micro_batches(step, lengths, fit) for step in steps]


def _set_checkpoints(
    decoder: Decoder, config: TrainConfig, steps: Sequence[Step], lengths: Sequence[int]
) -> str:
    """Set the layers whose activations are recomputed, and return the choice in words."""
    if isinstance(decoder, ReferenceDecoder):  # what it keeps is not counted, so "auto" takes no risk
        decoder.checkpointed = config.checkpoint != "none"
        return "every layer checkpointed" if decoder.checkpointed else "all activations kept"
    assert isinstance(decoder, FastDecoder)
    trained = len(decoder.layers) - decoder.first_trained
    if config.checkpoint == "all":
        decoder.checkpointed = trained
    elif config.checkpoint == "auto":
        micro_batches = [[lengths[row] for row in rows] for step in steps for rows in step]
        largest = max(micro_batches, key=sum)
        decoder.checkpointed = decoder.checkpoints_needed(
            sum(largest), max(largest), ACTIVATION_SHARE * memory.free_bytes()
        )
    if not decoder.checkpointed:
        return "all activations kept"
    return f"{decoder.checkpointed} of {trained} layers checkpointed"


def _set_up_frozen_layers(decoder: FastDecoder, config: TrainConfig, lengths: Sequence[int]) -> None:
    """Set the noise of the embeddings; without noise, keep the states of frozen layers for all epochs."""
    decoder.neftune_alpha = config.neftune_alpha
    if config.epochs > 1 and not config.neftune_alpha:
        decoder.keep_frozen_states(sum(lengths), FROZEN_STATES_SHARE * memory.free_bytes())
