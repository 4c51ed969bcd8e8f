"""Evaluation while training: the weights of the best step are kept, and training stops without progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsys_unsloth.model.unsloth_import import import_unsloth

import_unsloth()  # patches transformers, so it must come before it

import torch
from torch import nn
from transformers import TrainerCallback

from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.files import replacing_folder, write_json
from lmsys_unsloth.model.answer_head import answer_head, form_offsets
from lmsys_unsloth.model.batch import collate, share_out, split_by_budget, target
from lmsys_unsloth.model.decoder import Decoder
from lmsys_unsloth.model.parity import FallbackDecoder
from lmsys_unsloth.model.trained_weights import load_trained_weights, save_weights, trained_parameters
from lmsys_unsloth.prompting.encoding import EncodedRow
from lmsys_unsloth.train.metric_logger import MetricLogger

log = logging.getLogger(__name__)

KEY = "early_stopping_loss"
"""Name of the early-stopping loss in the trainer's log and in ``training.json``."""

TOKENS_PER_BATCH = 2048
"""Maximum tokens in a batch of the early-stopping set, padding included."""

_WEIGHTS, _SCORE = "weights.safetensors", "score.json"


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far."""

    step: int
    loss: float


def mean_loss(decoder: FallbackDecoder, rows: Sequence[EncodedRow]) -> float:
    """Compute the mean log loss of labelled rows with the head attached to the model, without dropout.

    ``rows`` are neighbours as the head requires it
    (:attr:`~lmsys_unsloth.model.answer_head.AnswerHead.rows_per_unit`). Each rank computes a share of them;
    the result is the same on all.
    """
    group, size = ranks.current(), answer_head(decoder.model).rows_per_unit
    units = [range(start, start + size) for start in range(0, len(rows), size)]
    costs = [sum(len(rows[row].input_ids) for row in unit) for unit in units]
    own = [rows[row] for unit in share_out(costs, group.size)[group.rank] for row in units[unit]]
    # A rank whose fast decoder fails computes its own share again, so the ranks meet after that.
    losses: list[float] = group.gather(decoder.run(lambda: _summed_loss(decoder, own)))
    return sum(losses) / len(rows)


@torch.no_grad()
def _summed_loss(decoder: Decoder, rows: Sequence[EncodedRow]) -> float:
    model, head, total = decoder.model, answer_head(decoder.model), 0.0
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    lengths, size = [len(row.input_ids) for row in rows], head.rows_per_unit
    units = sorted((range(i, i + size) for i in range(0, len(rows), size)), key=lambda unit: lengths[unit[0]])
    for chosen in split_by_budget(units, lengths, TOKENS_PER_BATCH, rows_per_batch=len(rows)):
        labels = torch.tensor([rows[row].comparison.label for row in chosen], device=device)
        ids = [rows[row].input_ids for row in chosen]
        offsets = form_offsets(head, [rows[row] for row in chosen], held_out=True)
        batch = collate(ids, [target(None, None)] * len(ids), rows_per_unit=size, offsets=offsets).to(device)
        found = head.probabilities(decoder, batch).gather(1, labels[:, None])
        total -= found.log().sum().item()
    model.train(was_training)
    return total


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Evaluates every few steps and keeps the trained weights of the best evaluation in a folder.

    The folder is written whole or not at all, and its score is read again when a training resumes.

    Args:
        model: model that is trained.
        evaluate: returns the mean log loss on the early-stopping set.
        folder: where the best weights are kept.
        history: file of the losses of all evaluations so far, for whoever watches the training.
        every: optimiser steps between two evaluations; the last step is always evaluated.
        patience: stop after this many evaluations without improvement; None: never.
        metric_logger: receives ``train/early_stopping_loss``.
    """

    def __init__(
        self, model: nn.Module, evaluate: Callable[[], float], folder: Path, history: Path, *, every: int,
        patience: int | None, metric_logger: MetricLogger,
    ) -> None:  # fmt: skip
        self.model, self.evaluate, self.folder, self.history = model, evaluate, folder, history
        self.every, self.patience, self.metric_logger = every, patience, metric_logger
        self.best = self._stored()
        self.stopped_early = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self.every and step != state.max_steps and not control.should_training_stop:
            return
        loss = self.evaluate()
        state.log_history.append({"step": step, KEY: loss})
        self.metric_logger.log({f"train/{KEY}": loss}, step=step)
        log.info("step %d: loss %.4f on the early-stopping set", step, loss)
        if ranks.current().first:
            write_json(self.history, [entry for entry in state.log_history if KEY in entry])
        if self.best is None or loss < self.best.loss:
            self.best = Best(step, loss)
            if ranks.current().first:
                self._store(self.best)
        since = [entry for entry in state.log_history if KEY in entry and entry["step"] > self.best.step]
        if self.patience is not None and len(since) >= self.patience and step < state.max_steps:
            log.info("no improvement in %d evaluations: training stops at step %d", self.patience, step)
            control.should_training_stop = self.stopped_early = True

    def load_best(self) -> Best:
        """Load the best weights into the model, on the first rank."""
        assert self.best is not None, "the last step is always evaluated"
        if ranks.current().first:
            load_trained_weights(self.model, self.folder / _WEIGHTS)
        return self.best

    def _store(self, best: Best) -> None:
        with replacing_folder(self.folder) as work:
            save_weights(trained_parameters(self.model), work / _WEIGHTS)
            write_json(work / _SCORE, {"step": best.step, "loss": best.loss})

    def _stored(self) -> Best | None:
        file = self.folder / _SCORE
        return Best(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
