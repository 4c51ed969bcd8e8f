"""The models of ``conf/model``: size, licence and the memory that they need, without downloading anything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.config.resources import CONF
from lmsys_unsloth.config.schema import LoraConfig, ModelConfig, TrainConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import memory

TOKENS = 2048
"""Length of the row for which memory is forecast."""


@dataclass(frozen=True)
class ListedModel:
    """A model that ``model=NAME`` chooses.

    Memory is that of its 4-bit weights and the activations of one row of :data:`TOKENS`.
    """

    name: str
    parameters: int
    """Weights of embeddings, LM head and linear layers."""
    window: int
    """Maximum tokens of a row."""
    family: str
    licence: str
    weights: str
    """Hub repository, or the Python package that contains the weights."""
    training_bytes: float
    """With adapters of rank 16, every layer checkpointed: the least that a training can do with."""
    fast_training_bytes: float
    """The same with all activations kept, which a training does where they fit."""
    scoring_bytes: float
    fits: Literal["training", "scoring", "no"]
    """What the free memory of this machine allows."""


def list_models() -> list[ListedModel]:
    """Read ``conf/model`` and forecast memory, from the smallest model to the largest.

    Raises:
        UserError: no shapes are known for one of the models.
    """
    files = [file for file in (CONF / "model").glob("*.yaml") if file.stem != "auto"]
    shapes = _read(Path(__file__).with_name("model_shapes.yaml"))
    if missing := sorted({file.stem for file in files} - shapes.keys()):
        raise UserError(
            f"{', '.join(missing)}: shapes not known; add them to lmsys_unsloth/cli/model_shapes.yaml, from "
            "the model's config.json"
        )
    free = memory.free_bytes()
    return sorted((_describe(file, shapes[file.stem], free) for file in files), key=lambda m: m.parameters)


def _describe(file: Path, shape: Mapping[str, Any], free: float) -> ListedModel:
    model, lora, train = _sections(file)
    depth = shape["num_hidden_layers"]
    scored = lora.model_copy(update={"first_layer": depth})  # no layer keeps activations
    checkpointed = train.model_copy(update={"checkpoint": "all"})
    training, fast, scoring = (
        sum(memory.forecast_memory(shape, model, *sections, tokens=TOKENS, row_length=TOKENS))
        for sections in ((lora, checkpointed), (lora, train), (scored, train))
    )
    return ListedModel(
        name=model.name,
        parameters=_parameters(shape),
        window=model.max_seq_length,
        family=shape["model_type"],
        licence=model.licence,
        weights=model.package or str(model.repo),
        training_bytes=training,
        fast_training_bytes=fast,
        scoring_bytes=scoring,
        fits="training" if training < free else "scoring" if scoring < free else "no",
    )


def _sections(file: Path) -> tuple[ModelConfig, LoraConfig, TrainConfig]:
    """A model's own settings, 4-bit weights kept as they are, with the default adapters and training.

    Hydra would take ten times as long to compose them.
    """
    composed = {
        "model": _read(CONF / "model_defaults.yaml") | _read(file) | {"resident": "4bit"},
        "lora": _read(CONF / "lora" / "default.yaml"),
        "train": _read(CONF / "train" / "default.yaml"),
    }
    del composed["model"]["defaults"]
    resolved: Any = OmegaConf.to_container(OmegaConf.create(composed), resolve=True)
    return (
        ModelConfig.model_validate(resolved["model"]),
        LoraConfig.model_validate(resolved["lora"]),
        TrainConfig.model_validate(resolved["train"]),
    )


def _parameters(shape: Mapping[str, Any]) -> int:
    layer = sum(math.prod(size) for size in memory.projection_shapes(shape).values())
    heads = 1 if shape["tie_word_embeddings"] else 2
    return int(shape["num_hidden_layers"] * layer + heads * shape["vocab_size"] * shape["hidden_size"])


def _read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def print_models(models: Sequence[ListedModel]) -> None:
    """Print the table, with the free memory of this machine below it."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("model=", "size", "window", "train GB", "score GB", "fits", "family", "licence"):
        left = name in ("model=", "fits", "family", "licence")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    colours = {"training": "green", "scoring": "yellow", "no": "red"}
    for model in models:
        table.add_row(
            model.name,
            f"{model.parameters / 1e9:.1f}B" if model.parameters > 9e8 else f"{model.parameters / 1e6:.0f}M",
            f"{model.window:,}",
            f"{model.training_bytes / 1e9:.1f}–{model.fast_training_bytes / 1e9:.1f}",
            f"{model.scoring_bytes / 1e9:.1f}",
            f"[{colours[model.fits]}]{model.fits}[/]",
            model.family,
            re.sub(" (Community License|License|Terms of Use)$", "", model.licence),
        )
    console = Console(highlight=False)
    console.print(table)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine"
    console.print(
        f"Free memory of {device}: {memory.free_bytes() / 1e9:.1f} GB. Forecast for 4-bit weights, adapters "
        f"of rank 16 and a row of {TOKENS:,} tokens: training with all layers checkpointed and with none.\n"
        "Any other local folder: model=auto model.path=DIR (docs/models.md)."
    )
