"""Next-token fine-tuning of one fold: plan the steps, train or resume, save the adapters."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.trained_rows import load_trained_rows
from lmsys_unsloth.model import loading, memory, trained_weights
from lmsys_unsloth.model.answer_head import answer_head, attach_head
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.parity import FallbackDecoder, choose_decoder
from lmsys_unsloth.model.trained_weights import trained_parameters
from lmsys_unsloth.prompting.encoded_rows import token_counts
from lmsys_unsloth.prompting.encoding import EncodedRow
from lmsys_unsloth.prompting.prepared import Prepared
from lmsys_unsloth.train.decoder_setup import set_up_decoder
from lmsys_unsloth.train.early_stopping import KEY, EarlyStopping, mean_loss
from lmsys_unsloth.train.gradients import copy_from_first
from lmsys_unsloth.train.metric_logger import MetricLogger
from lmsys_unsloth.train.parameter_groups import parameter_groups
from lmsys_unsloth.train.step_dataset import StepDataset
from lmsys_unsloth.train.steps import (
    PLANNED_TOKENS,
    Step,
    evenness,
    group_indices,
    padding_share,
    plan_steps,
    share_steps,
)
from lmsys_unsloth.train.time_budget import TimeBudget, Used
from lmsys_unsloth.train.trainer import AnswerTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def train_or_load(config: Config, run: Run, prepared: Prepared, metric_logger: MetricLogger) -> nn.Module:
    """Train the configured model, save the trained weights in the run, and return the model.

    A run that already holds trained weights (it was interrupted while scoring) is not trained again.
    """
    base = loading.load_model(config.model, config.train)
    encoder = prepared.encoder
    if run.adapter.is_dir():
        model = trained_weights.load_adapters(base, run.adapter)
        attach_head(model, config.head, encoder.answer_ids, folder=run.adapter)
        return model
    model = trained_weights.make_trainable(base, config.lora, config.train, seed=config.seed)
    earlier = None if config.train.init_from is None else Run(Path(config.train.init_from))
    if earlier is not None:
        trained_weights.continue_from(model, earlier.adapter)
    attach_head(
        model, config.head, encoder.answer_ids, eos_id=encoder.vocabulary.eos_id, seed=config.seed,
        folder=None if earlier is None else earlier.adapter, fitted_on=prepared.baseline_rows,
        earlier_rows=0 if earlier is None else len(load_trained_rows([earlier.training_rows]).prompts),
    )  # fmt: skip
    train(
        model, encoder.tokenizer, prepared.train, group_indices(prepared.unit_sizes), config.train,
        run=run, seed=config.seed, metric_logger=metric_logger, early_stopping=prepared.early_stopping,
        fp8=config.model.resident == "fp8",
        b_ratio=config.lora.b_learning_rate_ratio, head_learning_rate=config.head.learning_rate,
    )  # fmt: skip
    if ranks.current().first:
        trained_weights.save_adapters(model, run.adapter, config.model)
    return model


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    units: Sequence[Sequence[int]],
    config: TrainConfig,
    *,
    run: Run,
    seed: int,
    metric_logger: MetricLogger,
    early_stopping: Sequence[EncodedRow] = (),
    b_ratio: float = 1.0,
    head_learning_rate: float | None = None,
    fp8: bool = False,
) -> None:
    """Train ``model`` in place, resuming from the newest complete checkpoint if there is one.

    Several ranks compute shares of every step, and end with the same weights; the first one writes.

    Args:
        model: model with its head attached, whose trained parameters require gradients.
        tokenizer: required by trl.
        rows: labelled rows.
        units: indices into ``rows``; the rows of one unit share an optimiser step.
        config, seed: settings, and the seed of the order of the rows.
        run: where the first rank finds and writes ``checkpoints/`` and, at the end, ``training.json``.
        metric_logger: receives losses, learning rate and speed.
        early_stopping: labelled rows for ``config.evaluate_every``, none of them in ``rows``.
        b_ratio, head_learning_rate: see :func:`~lmsys_unsloth.train.parameter_groups.parameter_groups`.
        fp8: whether the fast decoder is to compute frozen products in fp8.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint of the step.
        UserError: a loss, the first step's gradients or trained weights are not finite, or all those
            gradients zero; a single row does not fit into memory; there are more ranks than rows in a step.
        WriteError: a checkpoint can't be written.
    """
    group = ranks.current()
    lengths = token_counts(rows)
    planned = _plan(units, lengths, config, seed)
    decoder = choose_decoder(model, rows, fast=config.fast, fp8=fp8, training=True)
    steps, checkpoints = set_up_decoder(decoder, _own_share(planned, units, lengths, config), lengths, config)
    packed = isinstance(decoder, FastDecoder)  # the reference decoder pads
    padding = 0.0 if packed else padding_share([batch for step in steps for batch in step], lengths)
    log.info(
        "training on %d rows: %d steps of up to %d rows, %s, %s",
        len(rows), len(planned), config.rows_per_step,
        "no padding" if packed else f"{padding:.1%} padding", checkpoints,
    )  # fmt: skip
    resumed_at = group.share(run.newest_checkpoint() if group.first else None)
    items = StepDataset(steps, rows, answer_head(model), [sum(map(len, step)) for step in planned])
    groups = parameter_groups(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, b_ratio=b_ratio,
        layer_decay=config.layer_decay, head_learning_rate=head_learning_rate,
    )  # fmt: skip
    in_use = FallbackDecoder(decoder, checkpointed=config.checkpoint != "none")
    budget = _time_budget(config, planned, lengths, early_stopping, run, resumed_at)
    trainer = AnswerTrainer(in_use, tokenizer, items, config, groups, run, seed, metric_logger, budget)
    stopping = None
    if config.evaluate_every is not None:
        stopping = EarlyStopping(
            model, lambda: mean_loss(in_use, early_stopping), run.best_checkpoint, run.evaluations,
            every=config.evaluate_every, patience=config.patience, metric_logger=metric_logger,
        )  # fmt: skip
        trainer.add_callback(stopping)
    copy_from_first(trained_parameters(model).values())
    started = time.perf_counter()
    with trainer.checkpoints.catch_signals():
        trainer.train(resume_from_checkpoint=None if resumed_at is None else str(run.checkpoint(resumed_at)))
    seconds = time.perf_counter() - started
    trainer.require_finite_weights()
    best = {} if stopping is None else _use_best(stopping, early_stopping)
    copy_from_first(trained_parameters(model).values())  # of the best step, which only the first rank loaded
    if group.first:
        done = trainer.state.global_step  # fewer than planned if it stopped early
        summary = {
            "steps": done,
            "planned_steps": len(planned),
            "resumed_at_step": resumed_at or 0,
            **_speed(planned[resumed_at or 0 : done], lengths, seconds),
            "padding_share": padding,
            **_course(trainer, in_use, budget),
            **best,
        }
        metric_logger.summarize({f"train/{key}": value for key, value in summary.items()})
        write_json(run.training, {**summary, "learning_curve": _learning_curve(trainer)})


def _course(trainer: AnswerTrainer, in_use: FallbackDecoder, budget: TimeBudget | None) -> dict[str, Any]:
    """What ``training.json`` says of processes, decoder, memory, time and offset."""
    processes, offset = ranks.current().size, answer_head(in_use.model).offset
    return {
        **({"processes": processes} if processes > 1 else {}),
        "fast": isinstance(in_use.current, FastDecoder),
        **({} if trainer.fast_steps is None else {"fast_steps": trainer.fast_steps}),
        "peak_memory_gb": memory.peak_gb(),
        **({} if budget is None else {"time_budget": budget.seconds, "time_used": budget.used.seconds}),
        **({} if offset is None else {"logit_scale": offset.logit_scale}),
    }


def _time_budget(
    config: TrainConfig, planned: Sequence[Step], lengths: Sequence[int],
    early_stopping: Sequence[EncodedRow], run: Run, resumed_at: int | None,
) -> TimeBudget | None:  # fmt: skip
    if config.time_budget is None:
        return None
    return TimeBudget(
        config.time_budget,
        [sum(lengths[row] for rows in step for row in rows) for step in planned],
        evaluate_every=config.evaluate_every,
        evaluation_tokens=sum(len(row.input_ids) for row in early_stopping),
        used=None if resumed_at is None else Used.read(run.checkpoint(resumed_at)),
    )


def _use_best(stopping: EarlyStopping, rows: Sequence[EncodedRow]) -> dict[str, int]:
    """Load the weights of the best step; returns what ``training.json`` says of the choice."""
    best = stopping.load_best()
    log.info("the weights of step %d are kept: loss %.4f on the early-stopping set", best.step, best.loss)
    prompts = {row.comparison.prompts for row in rows}
    return {"best_step": best.step, "early_stopping_prompts": len(prompts)}


def _plan(
    units: Sequence[Sequence[int]], lengths: Sequence[int], config: TrainConfig, seed: int
) -> list[Step]:
    """Plan all optimiser steps independently of the free memory, so that any machine can resume the run."""
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


def _own_share(
    planned: Sequence[Step], units: Sequence[Sequence[int]], lengths: Sequence[int], config: TrainConfig
) -> list[Step]:
    """This rank's share of the steps, which all ranks must have planned alike."""
    group, limit = ranks.current(), config.tokens_per_micro_batch
    digests = group.gather(hashlib.sha256(repr((planned, list(lengths))).encode()).hexdigest())
    if different := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise UserError(
            f"rank {', '.join(map(str, different))} read other rows than rank 0.\n"
            "  Give all machines the same files and the same version of this program."
        )
    shares = share_steps(
        planned, units, lengths, ranks=group.size,
        tokens_per_micro_batch=PLANNED_TOKENS if limit == "auto" else limit,
    )  # fmt: skip
    if group.size > 1:
        log.info(
            "%d processes: %.0f%% of the time of an even split", group.size, 100 / evenness(shares, lengths)
        )
    return shares[group.rank]


def _speed(done: Sequence[Step], lengths: Sequence[int], seconds: float) -> dict[str, float]:
    rows = [row for step in done for micro_batch in step for row in micro_batch]
    return {
        "seconds": seconds,
        "rows_per_second": len(rows) / seconds,
        "tokens_per_second": sum(lengths[row] for row in rows) / seconds,
    }


def _learning_curve(trainer: AnswerTrainer) -> list[dict[str, float]]:
    kept = ("step", "loss", "learning_rate", KEY)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry or KEY in entry]
    return [{key: float(entry[key]) for key in kept if key in entry} for entry in logged]
