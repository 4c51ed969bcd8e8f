"""Checks of what a command reads, before anything slow is imported: files, runs, the need of a GPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import pinned_versions
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import DataConfig, ModelConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.sources import check_source

LARGE = 2e9
"""Number of weights above which a model is not computed without a GPU, unless ``model.path`` names it."""

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Devices of NVIDIA's driver, of Windows' Linux subsystem, and of AMD's driver."""


def check_training(config: Config) -> None:
    """Check everything that a new training reads.

    Raises:
        UserError: all problems together.
    """
    data, train, teacher = config.data, config.train, config.data.soft_labels
    problems = _file_problems(data, labelled=True)
    if data.fold_file is not None and not Path(data.fold_file).expanduser().is_file():
        problems.append(f"data.fold_file = {data.fold_file}: no such file; give the folds.csv of a run")
    for key, earlier in {"train.init_from": train.init_from, "data.soft_labels": teacher}.items():
        if isinstance(earlier, str) and not Path(earlier).expanduser().exists():
            problems.append(f"{key} = {earlier}: does not exist; give a run directory")
    if not config.debug.preview:
        problems += _gpu_problems(config.model)
    _raise([*problems, *_package_problems(config.model)])


def check_scoring(config: Config, runs: Sequence[Run]) -> None:
    """Check everything that a scoring reads.

    Raises:
        UserError: all problems together.
    """
    problems = _file_problems(config.data, labelled=False)
    problems += [
        f"{run.path}: is not finished, it has neither {run.adapter.name}/ nor {run.predictions.name}; finish "
        f"it with `python train.py resume={run.path}`"
        for run in runs
        if not run.adapter.is_dir() and not run.predictions.is_file()
    ]
    if config.engine.kind in ("native", "transformers"):
        problems += [*_gpu_problems(config.model), *_package_problems(config.model)]
    _raise(problems)


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))


def _file_problems(data: DataConfig, labelled: bool) -> list[str]:
    problems = []
    for path in [data.path, *(data.extra if labelled else [])]:
        if path is None or path.startswith("hf:"):
            continue
        needs_label = labelled and path == data.path
        try:
            check_source(
                path, layout=data.layout, labelled=needs_label, soft_labels=data.soft_labels is not False
            )
        except UserError as error:
            problems.append(str(error))
    return problems


def _package_problems(model: ModelConfig) -> list[str]:
    """Packages that a wheel can't require, because they are installed without their dependencies."""
    needed = ["unsloth", "unsloth_zoo"]
    if model.path is None and model.package is not None:
        needed.append(model.package)
    pins = {
        name.replace("-", "_"): (name, version) for name, version in pinned_versions("no-deps.txt").items()
    }
    missing = [pins[name] for name in needed if name in pins and importlib.util.find_spec(name) is None]
    if not missing:
        return []
    command = " ".join(f"{name}=={version}" for name, version in missing)
    return [f"{', '.join(name for name, _ in missing)}: not installed; `pip install --no-deps {command}`"]


def _gpu_problems(model: ModelConfig) -> list[str]:
    """A model of the list that is too large for this machine, which has no GPU."""
    if model.path is not None or sys.platform != "linux" or has_gpu():
        return []
    shapes = yaml.safe_load(Path(__file__).parents[1].joinpath("model_shapes.yaml").read_text("utf-8"))
    weights = _weights(shapes[model.name]) if model.name in shapes else 0
    if weights < LARGE:
        return []
    return [
        f"model={model.name}: has {weights / 1e9:.0f} billion weights, and this machine has no GPU, or "
        "hides it; one row would take minutes.\n"
        "  Use model=smollm2, a machine with an NVIDIA GPU, or, to do it nevertheless, a downloaded copy: "
        "model.path=DIR."
    ]


def has_gpu() -> bool:
    """Whether the driver of a GPU is there and the environment does not hide all GPUs; asks no library."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return not hidden and any(Path(device).exists() for device in _GPU_DEVICES)


def _weights(shape: Mapping[str, Any]) -> int:
    """Number of weights in the linear layers and the embeddings."""
    width, head = shape["hidden_size"], shape["head_dim"]
    attention = 2 * (shape["num_attention_heads"] + shape["num_key_value_heads"]) * head * width
    layer = attention + 3 * width * shape["intermediate_size"]
    return int(shape["num_hidden_layers"] * layer + shape["vocab_size"] * width)
