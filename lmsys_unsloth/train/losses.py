"""Losses of a batch: cross-entropy against the target probabilities of the answers, and additions to it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.model.answer_head import answer_head
from lmsys_unsloth.model.batch import Batch
from lmsys_unsloth.model.decoder import Decoder


def answer_loss(decoder: Decoder, batch: Batch, config: TrainConfig) -> Tensor:
    """Sum the rows' losses against ``batch.targets``, with the head attached to the model; a float32 scalar.

    ``config.loss`` says over which tokens the cross-entropy is taken:

    - ``answers``: the answers only;
    - ``vocabulary``: the whole vocabulary (of longer answers, at all their tokens);
    - ``answer_eos``: as ``vocabulary``, plus the cross-entropy of the EOS token after the answer, as in
      supervised fine-tuning on the completion. With a soft target this second term is taken after the most
      probable answer (of equal ones the first), as it would need a forward pass for each answer.

    The targets are smoothed first, ``t (1 - ε) + ε / answers`` (Szegedy et al. 2016, arXiv:1512.00567).
    ``config.cosine_weight`` adds one minus the cosine of the predicted and the target probabilities, as the
    first place of the LMSYS competition did beside cross-entropy and KL divergence.
    """
    head = answer_head(decoder.model)
    targets = smooth_targets(batch.targets, config.label_smoothing)
    eos_loss: Tensor | float = 0.0
    if config.loss == "answers":
        log_probabilities = head.log_probabilities(decoder, batch)
    elif config.loss == "vocabulary":
        log_probabilities = head.vocabulary_log_probabilities(decoder, batch)
    else:
        chosen = batch.targets.argmax(dim=1).tolist()
        log_probabilities, after = head.answer_and_eos_log_probabilities(decoder, batch, chosen)
        eos_loss = -after.sum()
    loss = -(targets * log_probabilities).sum() + eos_loss
    if config.cosine_weight:
        cosine = F.cosine_similarity(log_probabilities.softmax(dim=-1), targets, dim=-1)
        loss = loss + config.cosine_weight * (1 - cosine).sum()
    return loss


def smooth_targets(targets: Tensor, share: float) -> Tensor:
    """Spread a share of each target distribution, ``[rows, answers]``, evenly over the answers.

    >>> import torch
    >>> smooth_targets(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 0.2)
    tensor([[0.8500, 0.0500, 0.0500, 0.0500]])
    """
    return targets * (1 - share) + share / targets.shape[1] if share else targets
