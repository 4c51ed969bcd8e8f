"""Next-token fine-tuning of one fold: plan the steps, train or resume, save the adapters."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmsys_unsloth import memory, models
from lmsys_unsloth.agreement import agreeing_decoder
from lmsys_unsloth.batches import (
    MOST_TOKENS,
    PLANNED_TOKENS,
    AnswerIds,
    Step,
    consecutive,
    joined,
    padding_share,
    plan_steps,
)
from lmsys_unsloth.config import Config
from lmsys_unsloth.decoder import Decoder, FastDecoder
from lmsys_unsloth.files import write_json
from lmsys_unsloth.prompting.tokens import EncodedRow
from lmsys_unsloth.runs import Run
from lmsys_unsloth.settings import TrainConfig
from lmsys_unsloth.tracking import Tracker
from lmsys_unsloth.trainer import COMPLETE, AnswerTrainer, StepLoader

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
"""Of the free memory, what activations may take: the rest is for gradients, the head and fragments."""


def trained_model(
    config: Config,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    answer_ids: AnswerIds,
    rows: Sequence[EncodedRow],
    unit_sizes: Sequence[int],
    tracker: Tracker,
) -> PeftModel:
    """The configured model with trained adapters, which are saved in the run.

    A run that already holds adapters (it was stopped while scoring) is not trained again.

    Args:
        unit_sizes: how many neighbours in ``rows`` share an optimiser step: 2 for a row and its mirror.
    """
    base = models.load_model(config.model, config.train)
    if run.adapter.is_dir():
        return models.load_adapters(base, run.adapter)
    model = models.add_adapters(base, config.lora, config.train, seed=config.seed)
    units = consecutive(unit_sizes)
    train(
        model, tokenizer, rows, units, config.train,
        answer_ids=answer_ids, run=run, seed=config.seed, tracker=tracker,
    )  # fmt: skip
    models.save_adapters(model, run.adapter, config.model)
    return model


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    units: Sequence[Sequence[int]],
    config: TrainConfig,
    *,
    answer_ids: AnswerIds,
    run: Run,
    seed: int,
    tracker: Tracker,
) -> None:
    """Train the adapters of ``model`` in place; goes on from the newest whole checkpoint, if there is one.

    Args:
        rows: labelled rows.
        answer_ids: of the three answers.
        units: indices into ``rows``; rows of one unit (a row and its mirror) share an optimiser step.
        run: gets ``checkpoints/`` and, at the end, ``training.json``.

    Raises:
        UserError: the first step's LoRA gradients are all zero or not finite.
    """
    lengths = [len(row.input_ids) for row in rows]
    steps = _planned(units, lengths, config, seed)
    padding = padding_share([micro_batch for step in steps for micro_batch in step], lengths)
    decoder = agreeing_decoder(model, rows, fast=config.fast, training=True)
    automatic = config.tokens_per_micro_batch == "auto"
    if automatic and isinstance(decoder, FastDecoder) and torch.cuda.is_available():
        steps = _joined_as_memory_allows(steps, decoder, lengths)
    checkpointed = _set_checkpoints(decoder, config, steps, lengths)
    log.info(
        "training on %d rows: %d steps of up to %d rows, %s, %s",
        len(rows), len(steps), config.rows_per_step,
        "no padding" if isinstance(decoder, FastDecoder) else f"{padding:.1%} padding", checkpointed,
    )  # fmt: skip
    resumed = newest_checkpoint(run.checkpoints)
    trainer = AnswerTrainer(
        decoder, tokenizer, StepLoader(steps, rows), answer_ids, config, run.checkpoints, seed, tracker
    )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    account = {
        "steps": len(steps),
        "resumed_at_step": _step_of(resumed),
        **_speed(steps[_step_of(resumed) :], lengths, time.perf_counter() - started),
        "padding_share": 0.0 if isinstance(decoder, FastDecoder) else padding,
        "fast": isinstance(decoder, FastDecoder),
        "peak_memory_gb": memory.peak_gb(),
    }
    tracker.summarize({f"train/{key}": value for key, value in account.items()})
    write_json(run.training, {**account, "learning_curve": _learning_curve(trainer)})


def _planned(
    units: Sequence[Sequence[int]], lengths: Sequence[int], config: TrainConfig, seed: int
) -> list[Step]:
    """Every step; what the machine can hold plays no part, or no other machine could resume the run."""
    limit = config.tokens_per_micro_batch
    steps = plan_steps(
        units,
        lengths,
        epochs=config.epochs,
        rows_per_step=config.rows_per_step,
        tokens_per_step=config.tokens_per_step,
        tokens_per_micro_batch=PLANNED_TOKENS if limit == "auto" else limit,
        seed=seed,
    )
    return steps[: config.max_steps]


def _joined_as_memory_allows(
    steps: Sequence[Step], decoder: FastDecoder, lengths: Sequence[int]
) -> list[Step]:
    """The same steps in as few micro-batches as fit with all activations kept."""
    fit = decoder.tokens_kept(max(lengths), MEMORY_SHARE * memory.free_bytes())
    return [joined(step, lengths, min(fit, MOST_TOKENS)) for step in steps]


def _speed(done: Sequence[Step], lengths: Sequence[int], seconds: float) -> dict[str, float]:
    rows = [row for step in done for micro_batch in step for row in micro_batch]
    return {
        "seconds": seconds,
        "rows_per_second": len(rows) / seconds,
        "tokens_per_second": sum(lengths[row] for row in rows) / seconds,
    }


def _set_checkpoints(
    decoder: Decoder, config: TrainConfig, steps: Sequence[Step], lengths: Sequence[int]
) -> str:
    """Decide which layers keep no activations, and say so."""
    if not isinstance(decoder, FastDecoder):
        return "unsloth's checkpointing" if config.checkpoint == "all" else "all activations kept"
    trained = len(decoder.layers) - decoder.first_trained
    if config.checkpoint == "all":
        decoder.checkpointed = trained
    elif config.checkpoint == "auto":
        micro_batches = [[lengths[row] for row in rows] for step in steps for rows in step]
        largest = max(micro_batches, key=sum)
        decoder.checkpointed = decoder.checkpoints_needed(
            sum(largest), max(largest), MEMORY_SHARE * memory.free_bytes()
        )
    if not decoder.checkpointed:
        return "all activations kept"
    return f"{decoder.checkpointed} of {trained} layers checkpointed"


def _learning_curve(trainer: AnswerTrainer) -> list[dict[str, float]]:
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: float(entry[key]) for key in ("step", "loss", "learning_rate")} for entry in logged]


def newest_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written whole; later, broken ones are deleted."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        if (checkpoint / COMPLETE).is_file():
            return checkpoint
        log.warning("%s was not written whole and is deleted", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0
