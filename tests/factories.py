"""One factory for each configuration section: the shipped values with changes, so a new key breaks no test.

>>> data_config(folds=3).folds
3
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lmsys_unsloth.config.head_schema import HeadConfig
from lmsys_unsloth.config.parsing import Config, parse_config
from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.config.schema import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
)

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
COMMAND = ("resume", "launcher", "search", "hydra")
"""Keys of the command, which are no part of a run's configuration."""


@functools.cache
def _composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)


def composed(*overrides: str) -> dict[str, Any]:
    """The composed configuration of ``train.py`` as plain values, without the keys of the command itself."""
    values = copy.deepcopy(_composed(*overrides))
    return {key: value for key, value in values.items() if key not in COMMAND}


def config(*overrides: str) -> Config:
    """The configuration that ``python train.py OVERRIDES`` runs with."""
    return parse_config(composed(*overrides))


def data_config(**changes: Any) -> DataConfig:
    """``data=simulated`` with changes."""
    return DataConfig.model_validate(composed()["data"] | changes)


def eval_config(**changes: Any) -> EvalConfig:
    """The shipped ``eval`` section with changes."""
    return EvalConfig.model_validate(composed()["eval"] | changes)


def model_config(folder: Path | None = None, **changes: Any) -> ModelConfig:
    """A local float32 model in ``folder``, not quantised, with changes."""
    local = {"name": "tiny", "repo": None, "package": None, "path": str(folder) if folder else None}
    small = {
        "load_in_4bit": False,
        "dtype": "float32",
        "max_seq_length": 512,
        "learning_rate": 1e-3,
        "first_layer": 0,
    }
    return ModelConfig.model_validate(composed()["model"] | local | small | changes)


def lora_config(**changes: Any) -> LoraConfig:
    """``lora=default`` with rank 8 and changes."""
    return LoraConfig.model_validate(composed()["lora"] | {"r": 8, "alpha": 16.0, "first_layer": 0} | changes)


def head_config(kind: str = "lm", **changes: Any) -> HeadConfig:
    """The head of ``conf/head``, without an offset, with changes."""
    return HeadConfig.model_validate(composed(f"head={kind}")["head"] | {"offset": "none"} | changes)


def train_config(**changes: Any) -> TrainConfig:
    """Settings under which a tiny model learns in a few steps, with changes."""
    quick = {
        "epochs": 1, "rows_per_step": 4, "tokens_per_micro_batch": 64, "learning_rate": 5e-3,
        "lr_scheduler": "constant", "warmup_ratio": 0.0, "max_grad_norm": None, "label_smoothing": 0.0,
        "optimizer": "adamw_torch_fused", "loss": "vocabulary", "save_every_minutes": 0,
    }  # fmt: skip
    return TrainConfig.model_validate(composed()["train"] | quick | changes)


def prompt_config(name: str, **changes: Any) -> PromptConfig:
    """A template of ``conf/prompt``; ``truncation={…}`` changes single values of that section."""
    settings = composed(f"prompt={name}")["prompt"]
    truncation = settings["truncation"] | changes.pop("truncation", {})
    budget = changes.get("max_tokens", settings["max_tokens"])
    if truncation["when_longer_than"] and truncation["when_longer_than"] > budget:
        truncation["when_longer_than"] = None
    return PromptConfig.model_validate(settings | changes | {"truncation": truncation})
