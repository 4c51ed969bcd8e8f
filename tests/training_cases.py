"""Rows that a tiny model learns in a few steps, and the training that the tests run on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from factories import head_config, lora_config, model_config, train_config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.model.answer_head import attach_head
from lmsys_unsloth.prompting.answer_tokens import AnswerIds
from lmsys_unsloth.prompting.encoding import EncodedRow
from lmsys_unsloth.report.tracking import NoTracker

ANSWER_IDS = ((330,), (389,), (47832,))
LORA = lora_config(target_modules=["q_proj", "v_proj", "up_proj"])
TRAIN = train_config()


def rows(count: int = 24) -> list[EncodedRow]:
    """Rows whose outcome is written in their first token."""
    random = np.random.default_rng(0)
    return [
        EncodedRow(
            comparison=Comparison(str(i), ("",), ("",), ("",), label=i % 3), text="", n_turns_kept=1,
            n_characters=1, n_cut=0,
            input_ids=np.array([100 + i % 3] * 4 + random.integers(1000, 2000, 3 + i % 7).tolist(), np.int32),
        )
        for i in range(count)
    ]  # fmt: skip


def with_head(model: Any, kind: str = "lm", answer_ids: AnswerIds = ANSWER_IDS) -> Any:
    """Attach a head to the model."""
    attach_head(model, head_config(kind), answer_ids, eos_id=2, seed=1)
    return model


def adapted(folder: Path, *, load_in_4bit: bool = False, kind: str = "lm") -> Any:
    model = loading.load_model(model_config(folder, load_in_4bit=load_in_4bit))
    return with_head(trained_weights.make_trainable(model, LORA, TRAIN, seed=1), kind)


def fit(
    model: Any, folder: Path, run: Run, train: TrainConfig = TRAIN, data: Sequence[EncodedRow] | None = None,
    early_stopping: Sequence[EncodedRow] = (), fp8: bool = False,
) -> None:  # fmt: skip
    from lmsys_unsloth.train import training

    data = rows() if data is None else data
    tokenizer = loading.load_tokenizer(model_config(folder))
    units = [[i] for i in range(len(data))]
    training.train(
        model,
        tokenizer,
        data,
        units,
        train,
        run=run,
        seed=5,
        metric_logger=NoTracker(),
        early_stopping=early_stopping,
        fp8=fp8,
    )  # fmt: skip


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
