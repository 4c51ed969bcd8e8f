"""Trained models in memory, and their probabilities for rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.selection import NO_FOLD
from lmsys_unsloth.evaluate import predictions, scoring
from lmsys_unsloth.evaluate.passes.logits import answer_logits
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.model import loading
from lmsys_unsloth.model.answer_head import attach_head, outcome_probabilities
from lmsys_unsloth.model.parity import FallbackDecoder, choose_decoder
from lmsys_unsloth.predict.engines.engine import OTHER_ENGINES
from lmsys_unsloth.predict.models import load_scored_model
from lmsys_unsloth.predict.sources import Trained
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder


@dataclass
class Scorer:
    """One model, which may share its base model with others: only one of them may score at a time."""

    model: nn.Module
    head: nn.Module
    encoder: RowEncoder
    config: Config
    adapter: str | None
    """Name under which the shared model holds the adapters; None if it holds no others."""
    decoder: FallbackDecoder | None = field(default=None, repr=False)

    def score(self, rows: Sequence[Comparison]) -> Predictions:
        """Score rows as :func:`~lmsys_unsloth.evaluate.scoring.predict_rows` does, without a cache on disk.

        Raises:
            UserError: the answers have other token ids after the text of one of the rows.
        """
        model: Any = self.model
        if self.adapter is not None:
            model.set_adapter(self.adapter)
            model.requires_grad_(False)
        model.answer_head = self.head
        encoded = self.encoder.encode(rows)
        if self.decoder is None:
            fast, fp8 = scoring.is_fast(self.config), scoring.uses_fp8(self.config)
            self.decoder = FallbackDecoder(choose_decoder(self.model, encoded, fast=fast, fp8=fp8))
        logits = self._logits(encoded)
        probabilities = outcome_probabilities(logits).numpy().astype(np.float32)
        predicted = scoring.to_predictions(encoded, probabilities, np.full(len(rows), NO_FOLD), None)
        settings = self.config.eval
        if settings.swap == "none":
            return predicted
        share = settings.swap_share if settings.swap == "uncertain" else 1.0
        where = predictions.least_certain(probabilities, share)
        swapped = self._logits(self.encoder.encode([rows[i].swapped() for i in where]))
        return scoring.with_swapped(predicted, logits, swapped, where, self.config)

    def _logits(self, encoded: Sequence[EncodedRow]) -> torch.Tensor:
        assert self.decoder is not None
        return answer_logits(self.decoder, encoded, scoring.tokens_per_batch(self.config.eval))


def load_scorers(members: Sequence[Trained]) -> list[Scorer]:
    """Load models; LoRA adapters of runs with the same base model share it.

    Raises:
        UserError: weights are missing or don't fit.
    """
    found: list[Scorer] = []
    for member in members:
        own = member.config.engine.kind not in OTHER_ENGINES
        tokenizer = loading.load_tokenizer(member.config.model, own_weights=own)
        encoder = RowEncoder(tokenizer, member.config.prompt)
        shared = next((scorer for scorer in found if _can_share(scorer, member)), None)
        if shared is None:
            model = load_scored_model(member.config, encoder, member.adapter, head=member.head)
            model.eval()
            name = "default" if hasattr(model, "peft_config") else None
        else:
            model, name = shared.model, f"member{len(found)}"
            peft: Any = model
            peft.load_adapter(member.adapter, adapter_name=name, is_trainable=False)
            attach_head(model, member.config.head, encoder.answer_ids, folder=member.adapter)
        head: Any = model.answer_head
        found.append(Scorer(model, head, encoder, member.config, name))
    return found


def _can_share(scorer: Scorer, member: Trained) -> bool:
    """Whether the scorer's model can hold the adapters of the member too."""
    native = {scorer.config.engine.kind, member.config.engine.kind} <= {"native", "transformers"}
    lora = scorer.adapter is not None and member.adapter is not None and member.config.lora.kind == "lora"
    return native and lora and scorer.config.model == member.config.model
