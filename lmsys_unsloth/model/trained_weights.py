"""The weights that a training changes, saved and loaded by name, whatever kind they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmsys_unsloth.core.errors import UserError


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` that require gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_weights(weights: Mapping[str, Tensor], file: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors as safetensors, converted to ``dtype`` unless that is None."""
    save_file({name: weight.detach().to(dtype or weight.dtype) for name, weight in weights.items()}, file)


def load_trained_weights(model: nn.Module, file: Path) -> None:
    """Copy weights that :func:`save_weights` wrote into the trained weights of ``model``.

    Raises:
        UserError: the file is missing or damaged, or its names or shapes differ from the model's.
    """
    copy_weights(trained_weights(model), read_weights(file), file)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file; UserError if it is missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: can't be read ({error}); restore it or start the training anew.") from None


@torch.no_grad()
def copy_weights(target: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: Path) -> None:
    """Copy stored tensors into those of the same names; UserError if any name or shape differs."""
    shapes = [{name: tuple(t.shape) for name, t in side.items()} for side in (target, stored)]
    different = sorted(dict(set(shapes[0].items()) ^ set(shapes[1].items())))
    if different:
        raise UserError(
            f"{file}: does not fit the model, {len(different)} tensors differ in name or shape "
            f"({', '.join(different[:3])} …).\n"
            "  Use the model and the LoRA settings that it was trained with."
        )
    for name, tensor in target.items():
        tensor.copy_(stored[name])
