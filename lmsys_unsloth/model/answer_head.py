"""Hidden states at the answer slot → logits of the answers and probabilities of the three outcomes.

A :class:`~lmsys_unsloth.model.decoder.Decoder` computes hidden states at the answer slot of each row; the
head is applied to these only, in training and evaluation alike. It is attached to the model as a submodule
(:func:`attach_head`), so that optimisers and gradient clipping find its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lmsys_unsloth.config.checks import TRAINED_HEADS
from lmsys_unsloth.config.head_schema import HeadConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.form.offset import FormOffset
from lmsys_unsloth.model.batch import Batch
from lmsys_unsloth.model.decoder import Decoder, causal_lm
from lmsys_unsloth.model.lm_head import cap_logits, head_logits, lm_head_rows
from lmsys_unsloth.model.packing import to_device
from lmsys_unsloth.prompting.answer_tokens import AnswerIds
from lmsys_unsloth.prompting.encoding import EncodedRow

FILE = "head.safetensors"
"""Name of the file with the trained weights, in the folder of the adapters."""

SMALL_START = 1e-3
"""Factor of the initial weights of ``linear`` with an offset: training starts at what the offset predicts."""


class AnswerHead(nn.Module):
    """Computes the answers' logits from hidden states at the answer slot, as ``config.kind`` says.

    The answers are A, B, tie and, if ``answer_ids`` has four, "both bad", whose probability is added to that
    of a tie wherever three outcomes are returned.

    Args:
        model: the model whose LM head's rows are used or copied.
        config: kind of head.
        answer_ids: token ids of the three or four answers; one each for ``lm_trained`` and ``linear``.
        eos_id: token that follows the answer, for the loss ``answer_eos``.
        seed: of the initial weights of ``linear``.
    """

    weight: nn.Parameter | None
    """Trained weights, float32 ``[answers, width]``; None for ``lm`` and ``davidson``, which have none."""

    def __init__(
        self,
        model: nn.Module,
        config: HeadConfig,
        answer_ids: AnswerIds,
        *,
        eos_id: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.kind, self.answer_ids, self.eos_id = config, config.kind, answer_ids, eos_id
        self.offset: FormOffset | None = None
        """What is added to the logits, for ``config.offset = form`` of a trained model."""
        self.single = all(len(ids) == 1 for ids in answer_ids)
        """Whether every answer is one token."""
        self.register_parameter("weight", self._initial_weight(model, seed))

    def _initial_weight(self, model: nn.Module, seed: int) -> nn.Parameter | None:
        if self.kind not in TRAINED_HEADS:
            return None
        if not self.single:
            raise ValueError(f"head {self.kind}: the answers {self.answer_ids} must be one token each")
        rows = lm_head_rows(model, [ids[0] for ids in self.answer_ids])
        if self.kind == "linear":  # as transformers initialises new classifiers
            spread = getattr(causal_lm(model).config, "initializer_range", 0.02)
            if self.config.offset != "none":
                spread *= SMALL_START
            generator = torch.Generator().manual_seed(seed)  # on the CPU: the same weights on every device
            rows = torch.empty(rows.shape).normal_(0, spread, generator=generator).to(rows.device)
        return nn.Parameter(rows.detach().float().clone())

    @property
    def rows_per_unit(self) -> int:
        """Rows that must be neighbours in a batch: 2 if rows 2i and 2i + 1 are a row and its swapped copy."""
        return 2 if self.kind == "davidson" else 1

    def logits(self, decoder: Decoder, batch: Batch) -> Tensor:
        """Compute scores, float32 ``[rows, answers]``, whose softmax is the prediction for this order.

        They are logits; of answers of several tokens, the sum of the log-probabilities of their tokens, each
        given those before it. To both, ``batch.offsets`` are added; in evaluation mode, they are first
        multiplied by the ``logit_scale`` of the offset.
        """
        scale = 1.0 if self.training or self.offset is None else self.offset.logit_scale
        return batch.add_offsets(self._model_logits(decoder, batch), scale)

    def _model_logits(self, decoder: Decoder, batch: Batch) -> Tensor:
        if not self.single:
            return torch.stack([_log_probability(decoder, batch, ids) for ids in self.answer_ids], dim=1)
        states = _slot_states(decoder, batch)
        if self.weight is None:
            return head_logits(decoder.model, states, [ids[0] for ids in self.answer_ids])
        logits = states.float() @ self.weight.T
        return logits if self.kind == "linear" else cap_logits(decoder.model, logits)

    def log_probabilities(self, decoder: Decoder, batch: Batch) -> Tensor:
        """Compute log-probabilities of the answers, float32 ``[rows, answers]``; of ``davidson`` for pairs.

        Raises:
            ValueError: ``davidson`` gets an odd number of rows.
        """
        logits = self.logits(decoder, batch)
        if self.kind != "davidson":
            return logits.log_softmax(dim=-1)
        if len(batch) % 2:
            raise ValueError(f"head davidson: {len(batch)} rows, but every row needs its swapped copy")
        averaged = average_orders(logits[::2], logits[1::2]).log_softmax(dim=-1)
        return torch.stack([averaged, exchange_answers(averaged)], dim=1).flatten(0, 1)

    def probabilities(self, decoder: Decoder, batch: Batch) -> Tensor:
        """Compute probabilities, float32 ``[rows, 3]`` in ``LABELS`` order; each row sums to 1."""
        return outcome_probabilities(self.log_probabilities(decoder, batch))

    def vocabulary_log_probabilities(self, decoder: Decoder, batch: Batch) -> Tensor:
        """Compute the answers' log-probabilities among all tokens, float32 ``[rows, answers]``."""
        if not self.single:
            return self.logits(decoder, batch)
        return self._among_all(head_logits(decoder.model, _slot_states(decoder, batch)))

    def answer_and_eos_log_probabilities(
        self, decoder: Decoder, batch: Batch, chosen: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Compute :meth:`vocabulary_log_probabilities`, and ``[rows]`` those of EOS after an answer.

        ``chosen`` holds the index of this answer for each row; it is appended to the row.
        """
        if self.eos_id is None:
            raise ValueError("the head was made without eos_id")
        input_ids, lengths = _extend(batch, [self.answer_ids[index] for index in chosen])
        if self.single:  # both positions in one pass
            states = decoder(input_ids, lengths, last=2)
            answers = self._among_all(head_logits(decoder.model, states[:, 0]))
        else:
            states = decoder(input_ids, lengths)
            answers = self.logits(decoder, batch)
        after = head_logits(decoder.model, states[:, -1])
        return answers, after[:, self.eos_id] - after.logsumexp(dim=-1)

    def _among_all(self, logits: Tensor) -> Tensor:
        """Log-probabilities ``[rows, answers]`` from the logits of the vocabulary."""
        chosen = torch.stack([logits[:, ids[0]] for ids in self.answer_ids], dim=1)
        return chosen - logits.logsumexp(dim=-1, keepdim=True)

    def save(self, folder: Path) -> None:
        """Write trained weights, with kind and answers as metadata, and the offset; nothing without any."""
        if self.offset is not None:
            self.offset.save(folder)
        if self.weight is not None:
            facts = {"kind": self.kind, "answer_ids": self._answers_text()}
            save_file({"weight": self.weight.detach().cpu().contiguous()}, folder / FILE, metadata=facts)

    def load(self, folder: Path, *, offset: bool) -> None:
        """Read what :meth:`save` wrote; the offset only if ``offset`` says so.

        Raises:
            UserError: the folder lacks trained weights, or holds those of another kind of head or of other
                answers.
        """
        if offset and self.config.offset == "form":
            self.offset = FormOffset.load(folder)
        file = folder / FILE
        if not file.is_file():
            if self.weight is not None:
                raise UserError(
                    f"{folder}: holds no {FILE}, but head.kind = {self.kind} has trained weights.\n"
                    "  Name a run that was trained with this head, or set head.kind=lm."
                )
            return
        with safe_open(file, framework="pt") as stored:
            facts, weight = stored.metadata(), stored.get_tensor("weight")
        if facts["kind"] != self.kind or self.weight is None:
            raise UserError(
                f"head.kind = {self.kind}: {file} was trained with head.kind={facts['kind']}; set that."
            )
        found, here = [facts["answer_ids"], weight.shape[1]], [self._answers_text(), self.weight.shape[1]]
        if found != here:
            raise UserError(
                f"{file}: was trained for the answer tokens {found[0]} and width {found[1]}; here they are "
                f"{here[0]} and {here[1]}.\n  Use the prompt and the model of the run that was trained."
            )
        with torch.no_grad():
            self.weight.copy_(weight)

    def _answers_text(self) -> str:
        return json.dumps(self.answer_ids)


def attach_head(
    model: nn.Module,
    config: HeadConfig,
    answer_ids: AnswerIds,
    *,
    eos_id: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    fitted_on: Sequence[Comparison] | None = None,
    earlier_rows: int = 0,
) -> AnswerHead:
    """Create the head of a model, with trained weights from ``folder`` if given, and attach it.

    A PEFT model saves only its adapters, and gives back the base model without the head. Arguments are those
    of :class:`AnswerHead`. With training rows, ``fitted_on``, the offset is fitted (:meth:`FormOffset.fit`).

    Raises:
        UserError: as :meth:`AnswerHead.load`.
    """
    head = AnswerHead(model, config, answer_ids, eos_id=eos_id, seed=seed)
    if folder is not None:
        head.load(folder, offset=fitted_on is None)
    if fitted_on is not None and config.offset == "form":
        head.offset = FormOffset.fit(fitted_on, earlier_rows)
    model.answer_head = head
    return head


def answer_head(model: nn.Module) -> AnswerHead:
    """Return the head that :func:`attach_head` attached to the model."""
    return cast(AnswerHead, model.answer_head)


def form_offsets(
    head: AnswerHead, rows: Sequence[EncodedRow], *, held_out: bool = False
) -> NDArray[np.float64] | None:
    """Offsets ``[rows, answers]`` that a head adds to the logits of rows; None if it has none.

    ``held_out``: the rows are training rows
    (:meth:`~lmsys_unsloth.data.form.FormOffset.held_out_logits`).
    """
    if head.offset is None:
        return None
    comparisons = [row.comparison for row in rows]
    found = head.offset.held_out_logits(comparisons) if held_out else head.offset.logits(comparisons)
    return found[:, [0, 1, 2, 2][: len(head.answer_ids)]]


def exchange_answers(values: Tensor) -> Tensor:
    """Exchange the columns of A and B in ``[rows, answers]``."""
    return torch.cat([values[:, 1:2], values[:, :1], values[:, 2:]], dim=1)


def average_orders(logits: Tensor, swapped: Tensor) -> Tensor:
    """Average logits ``[rows, answers]`` of rows with those of their swapped copies, in the rows' order.

    The softmax is Davidson's model of comparisons with ties (1970, doi:10.1080/01621459.1970.10481082),
    ``P(a) : P(b) : P(tie) = e^(d/2) : e^(-d/2) : ν``: d is the difference of the averaged logits of A and B,
    which changes its sign when the responses are swapped, and ``log ν`` is that of a tie minus their mean,
    which does not change.
    """
    return (logits + exchange_answers(swapped)) / 2


def outcome_probabilities(logits: Tensor) -> Tensor:
    """Turn logits of three or four answers into probabilities ``[rows, 3]``: "both bad" counts as a tie.

    >>> outcome_probabilities(torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log())
    tensor([[0.2500, 0.2500, 0.5000]])
    """
    probabilities = logits.softmax(dim=-1)
    return torch.cat([probabilities[:, :2], probabilities[:, 2:].sum(dim=1, keepdim=True)], dim=1)


def _slot_states(decoder: Decoder, batch: Batch) -> Tensor:
    """Hidden states at the answer slots, ``[rows, width]``."""
    return decoder(batch.input_ids, batch.lengths).squeeze(1)


def _extend(batch: Batch, added: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Append tokens to each row; returns concatenated ids ``[tokens]`` and the rows' lengths."""
    rows = torch.split(batch.input_ids, list(batch.lengths))
    tokens = to_device(torch.tensor([i for ids in added for i in ids]).long(), batch.input_ids.device)
    tails = torch.split(tokens, [len(ids) for ids in added])
    extended = torch.cat([part for pair in zip(rows, tails, strict=True) for part in pair])
    return extended, [length + len(ids) for length, ids in zip(batch.lengths, added, strict=True)]


def _log_probability(decoder: Decoder, batch: Batch, ids: Sequence[int]) -> Tensor:
    """``log p(ids | prompt)``, float32 ``[rows]``; all but the last answer token extend the prompt."""
    states = decoder(*_extend(batch, [ids[:-1]] * len(batch)), last=len(ids))
    log_probabilities = head_logits(decoder.model, states).log_softmax(dim=-1)
    return torch.stack([log_probabilities[:, i, token] for i, token in enumerate(ids)]).sum(dim=0)
