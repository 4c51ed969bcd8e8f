"""Batch → answer probabilities and losses, for training and evaluation alike.

A :class:`~lmsys_unsloth.model.decoder.Decoder` computes hidden states at the answer slot of each row; the LM
head is applied to these only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.model.batch import Batch
from lmsys_unsloth.model.decoder import Decoder, causal_lm
from lmsys_unsloth.prompting.answer_tokens import AnswerIds


def head_logits(model: nn.Module, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
    """Compute the logits ``[..., ids]`` of vocabulary entries (None: all) from states ``[..., width]``.

    In float32, as neighbouring bfloat16 numbers between 16 and 32 are 0.125 apart, and with Gemma 2's final
    cap: ``cap * tanh(logits / cap)`` (arXiv:2408.00118).
    """
    base = causal_lm(model)
    weight = cast(nn.Linear, base.get_output_embeddings()).weight  # type: ignore[operator]
    if ids is not None:
        weight = weight[torch.tensor(ids, device=weight.device)]
    logits = cast(Tensor, _Float32Head.apply(states, weight))  # type: ignore[no-untyped-call]
    cap = getattr(base.config, "final_logit_softcapping", None)
    return logits if cap is None else cast(float, cap) * torch.tanh(logits / cast(float, cap))


class _Float32Head(torch.autograd.Function):
    """``states @ weight.T`` in float32 for a frozen weight in any dtype, without a float32 copy of all of it.

    A copy of Gemma 2's head would take 3.7 GB, and autograd would keep it for the backward pass.
    """

    ENTRIES = 16_384  # vocabulary entries that are cast to float32 at a time

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, states.dtype
        parts = torch.split(weight, _Float32Head.ENTRIES)
        return torch.cat([states.float() @ part.float().T for part in parts], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weights = torch.split(ctx.weight, _Float32Head.ENTRIES)
        columns = torch.split(gradient, _Float32Head.ENTRIES, dim=-1)
        total = torch.zeros(*gradient.shape[:-1], ctx.weight.shape[1], device=gradient.device)
        for part, weight in zip(columns, weights, strict=True):
            total += part @ weight.float()
        return total.to(ctx.dtype), None


def answer_scores(decoder: Decoder, batch: Batch, answer_ids: AnswerIds) -> Tensor:
    """Compute scores, float32 ``[rows, 3]``, whose softmax is the prediction.

    They are the logits of single-token answers; of longer answers, the sum of the log-probabilities of their
    tokens, each given those before it.
    """
    if _all_single(answer_ids):
        return head_logits(decoder.model, _slot_states(decoder, batch), [ids[0] for ids in answer_ids])
    return torch.stack([_answer_log_probability(decoder, batch, ids) for ids in answer_ids], dim=1)


def answer_probabilities(decoder: Decoder, batch: Batch, answer_ids: AnswerIds) -> Tensor:
    """Compute probabilities, float32 ``[rows, 3]`` in ``LABELS`` order; each row sums to 1."""
    return answer_scores(decoder, batch, answer_ids).softmax(dim=-1)


def answer_loss(
    decoder: Decoder,
    batch: Batch,
    answer_ids: AnswerIds,
    kind: Literal["answers", "vocabulary", "answer_eos"],
) -> Tensor:
    """Sum the rows' cross-entropy against ``batch.targets``; a float32 scalar.

    With ``kind="answers"`` it is that of the three answers only, with ``"vocabulary"`` the next-token loss
    over the whole vocabulary (of longer answers, over all their tokens).
    """
    if kind == "vocabulary" and _all_single(answer_ids):
        logits = head_logits(decoder.model, _slot_states(decoder, batch))
        answers = logits[:, [ids[0] for ids in answer_ids]]
        log_probabilities = answers - logits.logsumexp(dim=-1, keepdim=True)
    else:
        log_probabilities = answer_scores(decoder, batch, answer_ids)
        if kind == "answers":
            log_probabilities = log_probabilities.log_softmax(dim=-1)
    return -(batch.targets * log_probabilities).sum()


def _all_single(answer_ids: AnswerIds) -> bool:
    return all(len(ids) == 1 for ids in answer_ids)


def _slot_states(decoder: Decoder, batch: Batch) -> Tensor:
    """Hidden states at the answer slots, ``[rows, width]``."""
    return decoder(batch.input_ids, batch.lengths).squeeze(1)


def _answer_log_probability(decoder: Decoder, batch: Batch, ids: Sequence[int]) -> Tensor:
    """``log p(ids | prompt)``, float32 ``[rows]``; all but the last answer token extend the prompt."""
    answer = torch.tensor(ids, device=batch.input_ids.device)
    rows = torch.split(batch.input_ids, list(batch.lengths))
    extended = torch.cat([part for row in rows for part in (row, answer[:-1])])
    states = decoder(extended, [length + len(ids) - 1 for length in batch.lengths], last=len(ids))
    log_probabilities = head_logits(decoder.model, states).log_softmax(dim=-1)
    chosen = answer.expand(len(batch), -1)[..., None]
    return log_probabilities.gather(2, chosen).squeeze(-1).sum(dim=1)
