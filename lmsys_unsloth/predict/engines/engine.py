"""Engines other than this project's own: they score rows of token ids behind the interface of a model.

An :class:`EngineModel` takes the place of a model with its answer head wherever rows are scored, so that
batches, both orders of the responses, resuming and reports are the same for every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.form.offset import FormOffset
from lmsys_unsloth.model.batch import Batch
from lmsys_unsloth.prompting.answer_tokens import AnswerIds
from lmsys_unsloth.prompting.encoding import RowEncoder

OTHER_ENGINES = ("classifier", "llama_cpp", "openai", "vllm")
"""Engines that load what they compute themselves; the others are forward passes of a model in memory."""


class Engine(Protocol):
    """Computes the answers' scores of rows."""

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Compute scores, float32 ``[rows, answers]``, whose softmax over the answers is the prediction.

        ``rows`` are token ids up to the answer slot.

        Raises:
            UserError: the engine fails, or returns something else than what was asked for.
        """


class EngineModel(nn.Module):
    """An engine as a model with an answer head; it has no weights and can't be trained."""

    def __init__(self, engine: Engine, answer_ids: AnswerIds, offset: FormOffset | None = None) -> None:
        super().__init__()
        self.answer_head = _EngineHead(engine, answer_ids, offset)
        # Where rows are scored, batches are moved to the device of a model's parameters.
        self.on_cpu = nn.Parameter(torch.empty(0), requires_grad=False)


class _EngineHead(nn.Module):
    """Has what scoring uses of :class:`~lmsys_unsloth.model.answer_head.AnswerHead`."""

    def __init__(self, engine: Engine, answer_ids: AnswerIds, offset: FormOffset | None) -> None:
        super().__init__()
        self.engine, self.answer_ids, self.offset = engine, answer_ids, offset

    def logits(self, decoder: Any, batch: Batch) -> Tensor:
        """Compute scores ``[rows, answers]``; the decoder is not used."""
        rows = torch.split(batch.input_ids, list(batch.lengths))
        logits = self.engine.logits([row.tolist() for row in rows])
        return batch.add_offsets(logits, 1.0 if self.offset is None else self.offset.logit_scale)


def open_engine(config: Config, encoder: RowEncoder, adapter: Path | None) -> Engine:
    """Open the engine that ``engine.kind`` names, one of :data:`OTHER_ENGINES`.

    Args:
        config: of the scoring.
        encoder: encodes the rows.
        adapter: folder of the trained weights, which only ``vllm`` reads; None for an untrained model.

    Raises:
        UserError: a package is missing, the exported model can't be read or belongs to another tokenizer, a
            server does not answer, an answer is several tokens, or the head is no part of the LM head.
    """
    kind, settings = config.engine.kind, config.engine
    long = [ids for ids in encoder.answer_ids if len(ids) > 1]
    if long:
        raise UserError(
            f"engine={kind} reads the probability of one token, but the answers are the tokens "
            f"{list(map(list, encoder.answer_ids))}.\n  Use engine=native, or answers of one token "
            "(prompt.answers)."
        )
    if config.head.kind == "linear" and kind != "classifier":
        raise UserError(
            f"engine={kind} reads the LM head, but head.kind=linear is a classifier of its own.\n  Use "
            "engine=native, or export it: format=classifier, engine=classifier"
        )
    if kind == "openai":
        from lmsys_unsloth.predict.engines.server import Server

        return Server(settings, encoder)
    if kind == "vllm":
        from lmsys_unsloth.predict.engines.vllm_engine import VllmEngine

        return VllmEngine(config, encoder, adapter)
    assert settings.path is not None  # config/checks.py
    if kind == "llama_cpp":
        from lmsys_unsloth.predict.engines.gguf_file import GgufFile

        return GgufFile(Path(settings.path), encoder)
    from lmsys_unsloth.predict.engines.classifier import Classifier

    return Classifier(Path(settings.path), encoder)
