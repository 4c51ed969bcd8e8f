"""trl's SFTTrainer, with whole optimiser steps as dataset items and a loss on the answer token only."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lmsys_unsloth.model import memory
from lmsys_unsloth.model.unsloth_import import import_unsloth

import_unsloth()  # patches trl and transformers, so it must come before them

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from transformers.integrations.neftune import activate_neftune
from trl import SFTConfig, SFTTrainer

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_errors
from lmsys_unsloth.model.batch import Batch
from lmsys_unsloth.model.decoder import Decoder, FastDecoder, compute_dtype
from lmsys_unsloth.model.parity import FallbackDecoder
from lmsys_unsloth.model.trained_weights import (
    load_trained_weights,
    save_weights,
    trained_parameters,
)
from lmsys_unsloth.train.callbacks import (
    CheckpointCallback,
    FiniteLossCallback,
    ProgressCallback,
    TimeBudgetCallback,
)
from lmsys_unsloth.train.gradients import add_gradients, check_gradients, not_finite, seed_step
from lmsys_unsloth.train.losses import answer_loss
from lmsys_unsloth.train.metric_logger import MetricLogger
from lmsys_unsloth.train.parameter_groups import optimizer_name
from lmsys_unsloth.train.step_dataset import StepDataset, only
from lmsys_unsloth.train.time_budget import TimeBudget, learning_rate_factor
from lmsys_unsloth.train.tokens_limit import TokensLimit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


OFFSET_FROM = 0.5
"""Progress of the training from which on the head's offset is added to the logits (``head.offset``)."""

_WEIGHTS = "weights.safetensors"
"""Name of the trained weights in a checkpoint."""


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose dataset items are optimiser steps, each made of micro-batches within a token budget.

    The gradient of a step is that of the mean loss over its rows, however they are split into micro-batches
    and over ranks.
    Checkpoints hold the trained weights only. The ``groups`` are those of
    :func:`~lmsys_unsloth.train.parameter_groups.parameter_groups`; the ``seed`` is that of dropout. With a
    ``budget`` the learning rate follows its progress, and training ends when it is used up.
    """

    def __init__(
        self, decoder: FallbackDecoder, tokenizer: PreTrainedTokenizerBase, steps: StepDataset,
        config: TrainConfig, groups: list[dict[str, Any]], run: Run, seed: int, metric_logger: MetricLogger,
        budget: TimeBudget | None = None,
    ) -> None:  # fmt: skip
        model = decoder.model
        self.decoder, self.steps, self.train_config, self.run = decoder, steps, config, run
        self.groups, self.memory, self.budget = groups, memory.Releaser(), budget
        self.limit = TokensLimit()
        self.checkpoints = CheckpointCallback(run, config.save_every_minutes, config.keep)
        self.fast_steps: int | None = None
        """Number of steps before the fast decoder failed; None if it did not."""
        dtypes = {name: weight.dtype for name, weight in trained_parameters(model).items()}
        super().__init__(
            model=model,
            args=_arguments(decoder.current, config, len(steps), run.checkpoints, seed),
            train_dataset=dummy_dataset(),
            processing_class=tokenizer,
            callbacks=[
                *([] if budget is None else [TimeBudgetCallback(budget)]),
                FiniteLossCallback(self._not_finite),
                ProgressCallback(len(steps), metric_logger),
                self.checkpoints,
            ],
        )
        self.remove_callback(PrinterCallback)
        decoder.on_failure = self._fast_decoder_failed
        # trl casts the adapters of a 4-bit model to bfloat16, whose 8 bits of precision lose small AdamW
        # updates: restore the dtype they were created with.
        for name, weight in trained_parameters(model).items():
            weight.data = weight.data.to(dtypes[name])

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = kind(self.groups, **settings)
        return cast(torch.optim.Optimizer, self.optimizer)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.budget is None:
            return super().create_scheduler(num_training_steps, optimizer)
        budget, config = self.budget, self.train_config
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda _: learning_rate_factor(config.lr_scheduler, budget.progress, config.warmup_ratio),
        )
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.require_finite_weights()
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(trained_parameters(self.model), folder / _WEIGHTS)
        if self.budget is not None:
            self.budget.used.write(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if ranks.current().first:
            with write_errors(self.run.checkpoint(self.state.global_step)):
                super()._save_checkpoint(model, trial)

    def require_finite_weights(self) -> None:
        """Raise :class:`UserError` if a trained weight is not finite, as a loss logged later would show."""
        if not all(bool(weight.isfinite().all()) for weight in trained_parameters(self.model).values()):
            step = self.state.global_step
            raise self._not_finite(max(1, step - self.args.logging_steps), step, float("nan"))

    def _not_finite(self, first: int, last: int, loss: float) -> UserError:
        rows = [
            self.steps.rows[row] for step in self.steps.steps[first - 1 : last] for b in step for row in b
        ]
        return not_finite(first, last, loss, [row.comparison.id for row in rows], self.run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained_weights(self.model, Path(resume_from_checkpoint) / _WEIGHTS)

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=only)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        if not model.training:  # thousands of modules would be set in every step
            model.train()
        planned, rows = inputs["micro_batches"], inputs["rows"]
        if self._progress < OFFSET_FROM:
            planned = [dataclasses.replace(batch, offsets=None) for batch in planned]
        seed_step(self.args.seed, self.state.global_step)
        total = None
        while total is None:
            batches = [part for batch in planned for part in self.limit.split(batch)]
            try:
                total = self.decoder.run(functools.partial(self._gradients, batches, rows))
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
            if total is None:  # outside the handler: the exception keeps the activations alive
                model.zero_grad()
                self._reduce_memory(batches)
        self.limit.step_succeeded()
        # The ranks meet only here: out of memory, or after a failure of the fast decoder, each computes its
        # own share again.
        total = add_gradients(trained_parameters(model).values(), total)
        if not getattr(self, "_gradients_checked", False) and not self.args.fp16:
            check_gradients(model, total.item())
            self._gradients_checked = True
        return total

    @property
    def _progress(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        if self.budget is not None:
            return self.budget.progress
        return float(self.state.global_step / self.state.max_steps)

    def _fast_decoder_failed(self) -> None:
        """Note the step, and have transformers add the noise that the fast decoder added itself."""
        self.fast_steps = self.state.global_step
        if self.train_config.neftune_alpha:
            self.neftune_noise_alpha = self.train_config.neftune_alpha
            self.neftune_hook_handle = activate_neftune(self.model, self.neftune_noise_alpha)

    def _gradients(self, batches: Sequence[Batch], rows: int) -> Tensor:
        """Accumulate the gradient of the batches' summed loss divided by ``rows``; returns that loss."""
        device = self.args.device
        total = torch.zeros((), device=device)
        for batch in batches:
            loss = answer_loss(self.decoder, batch.to(device), self.train_config) / rows
            self.accelerator.backward(loss)
            total += loss.detach()
            self.memory.release()
        return total

    def _reduce_memory(self, batches: Sequence[Batch]) -> None:
        """Use smaller micro-batches for a while or, once they are single rows, checkpoint all layers."""
        decoder, largest = self.decoder.current, max(batch.padded_tokens for batch in batches)
        several = [batch.padded_tokens for batch in batches if len(batch) > batch.rows_per_unit]
        if several:
            self.limit.reduce(max(several))
            log.warning(
                "out of memory with %d tokens in a micro-batch: going on with at most %d, same step",
                largest, self.limit.tokens,
            )  # fmt: skip
        elif isinstance(decoder, FastDecoder) and not decoder.all_checkpointed:
            decoder.checkpointed = len(decoder.layers)
            log.warning(
                "out of memory with a single row: all layers are checkpointed from here on, same step"
            )
        else:
            raise UserError(
                f"out of memory with a single row of {largest} tokens and nothing left to give up.\n"
                "  Lower prompt.max_tokens, use model.resident=4bit, or a GPU with more memory."
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers' estimate assumes a loss at every position


def dummy_dataset() -> Dataset:
    """Dummy dataset for SFTTrainer's constructor; unsloth rejects one with no labelled token on CUDA."""
    return Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})


def _arguments(decoder: Decoder, config: TrainConfig, steps: int, checkpoints: Path, seed: int) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    dtype = compute_dtype(decoder.model)
    # The fast decoder adds the noise itself; the model's own forward pass gets it from transformers.
    noise = None if isinstance(decoder, FastDecoder) else config.neftune_alpha or None
    return SFTConfig(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm or 0.0,  # 0 switches clipping off
        neftune_noise_alpha=noise,
        optim=optimizer_name(
            config, trained=sum(p.numel() for p in trained_parameters(decoder.model).values())
        ),
        bf16=on_gpu and dtype == torch.bfloat16,
        fp16=on_gpu and dtype == torch.float16,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,  # done by the decoder or by unsloth
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # would wait for the GPU at every step
        save_strategy="no",  # CheckpointCallback decides, and deletes old ones
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
