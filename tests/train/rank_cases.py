"""Trainings that two ranks run as ``torchrun`` starts them, and that one process runs for comparison.

``torchrun --nproc-per-node=2 rank_cases.py MODEL WORK`` runs all cases; in the last one rank 1 is killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from training_cases import TRAIN, adapted, adapters, fit, rows

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import launcher, ranks
from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model.decoder import FastDecoder

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    # One row is left for a last step, of which rank 1 has no share; the set of 5 rows is odd too.
    "uneven": {
        "data": rows(21),
        "train": {"evaluate_every": 2, "patience": 1},
        "early_stopping": rows(29)[24:],
    },
    "resumed": {},
    "failing": {},
}
SIGNALLED_STEP, DEADLY_STEP = 2, 3


def train_case(name: str, model_folder: Path, run: Run) -> dict[str, torch.Tensor]:
    """Train and score; returns the trained weights and the ``probabilities`` of all rows."""
    case = CASES[name]
    model, settings = adapted(model_folder), TRAIN.model_copy(update=case.get("train", {}))
    fit(model, model_folder, run, settings, case.get("data"), case.get("early_stopping", ()))
    probabilities = torch.from_numpy(score_rows(FastDecoder(model), rows(), 64))
    return {**adapters(model), "probabilities": probabilities}


def fail_on_rank_1() -> Callable[[], None]:
    """Let memory be too small in rank 1's first step, and its fast decoder fail in the second."""
    from lmsys_unsloth.train import trainer

    ordinary, calls = trainer.answer_loss, []

    def failing(decoder: Any, *arguments: Any) -> torch.Tensor:
        calls.append(decoder)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(calls) > 4 and isinstance(decoder.current, FastDecoder):
            raise RuntimeError("no kernel image is available")
        return ordinary(decoder, *arguments)

    if ranks.current().rank == 1:
        trainer.answer_loss = failing
    return lambda: setattr(trainer, "answer_loss", ordinary)


def signal_rank_1(number: signal.Signals, step: int) -> Callable[[], None]:
    """Have rank 1 get a signal in the middle of a step."""
    from lmsys_unsloth.train import trainer

    ordinary = trainer.AnswerTrainer._gradients

    def signalled(self: Any, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return ordinary(self, *arguments)

    if ranks.current().rank == 1:
        trainer.AnswerTrainer._gradients = signalled  # type: ignore[method-assign]
    return lambda: setattr(trainer.AnswerTrainer, "_gradients", ordinary)


def main(model_folder: Path, work: Path) -> None:
    from lmsys_unsloth.cli import arguments

    group = launcher.join()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    assert not torch.distributed.is_initialized()  # libraries would see it
    for name in CASES:
        restore = fail_on_rank_1() if name == "failing" else lambda: None
        found = train_case(name, model_folder, Run(work / name))
        save_file(found, work / name / f"rank{group.rank}.safetensors")
        restore()
    restore = signal_rank_1(signal.SIGTERM, SIGNALLED_STEP)
    try:
        train_case("plain", model_folder, Run(work / "interrupted"))
    except KeyboardInterrupt:
        (work / "interrupted" / f"rank{group.rank}").touch()
    restore()
    signal_rank_1(signal.SIGKILL, DEADLY_STEP)
    with arguments.messages():
        train_case("plain", model_folder, Run(work / "killed"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
