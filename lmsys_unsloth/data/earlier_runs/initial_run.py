"""Staged training: the checks of a run whose adapters another training starts from (``train.init_from``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.trained_rows import count_trained

MODEL_KEYS = ("name", "repo", "package", "path", "revision")
"""Keys that identify the base model."""
ADAPTER_KEYS = ("kind", "r", "alpha", "target_modules", "use_rslora", "use_dora", "first_layer")
"""Keys that determine which adapters there are and how their product is scaled."""
FULL_KEYS = ("kind", "target_modules", "first_layer")
"""The same for full fine-tuning."""


def check_init_from(config: Config, earlier: Run, held_out: Sequence[Comparison]) -> None:
    """Check that the adapters of an earlier run fit this one and were not trained on its validation rows.

    Args:
        config: configuration of the new training.
        earlier: run that ``train.init_from`` names.
        held_out: validation rows of the new training.

    Raises:
        UserError: the earlier run is not finished, has another base model, other adapters or another head
            (all differences are listed), or its adapters were trained on rows of ``held_out``.
    """
    if not earlier.training.is_file():
        raise UserError(
            f"train.init_from = {earlier.path}: its training is not finished (no {earlier.training.name}); "
            f"finish it with `python train.py resume={earlier.path}`"
        )
    differences = _differences(config, earlier.settings())
    if differences:
        raise UserError(
            "\n  ".join(
                [
                    f"train.init_from = {earlier.path}: its weights do not fit this run:", *differences,
                    "Give this run the values of the earlier one; all other settings may differ.",
                ]
            )
        )  # fmt: skip
    seen = count_trained(earlier.training_rows, held_out) if held_out else 0
    if seen:
        raise UserError(
            f"train.init_from = {earlier.path}: it, or a stage before it, was trained on {seen:,} of the "
            f"{len(held_out):,} validation rows of this run, so the score would be too optimistic.\n"
            "  Start from a run of the same fold (same data.fold_seed and data.folds, or data.fold_file), or "
            "train the earlier stage without these rows."
        )


def stages(run: Run) -> list[str]:
    """Directories of the stages that led to a run, the first one first and the run itself last."""
    return list(run.data_description().get("stages", [str(run.path)]))


def _differences(config: Config, stored: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, one line each; keys that the earlier version did not have are left out."""
    current = config.model_dump(mode="json")
    keys = {
        "model": MODEL_KEYS,
        "lora": ADAPTER_KEYS if config.lora.kind == "lora" else FULL_KEYS,
        "head": ("kind",),
    }
    found = []
    for section, names in keys.items():
        for name in names:
            new = current[section][name]
            old = stored.get(section, {}).get(name, new)
            same = sorted(old) == sorted(new) if isinstance(new, list) else old == new
            if not same:
                found.append(f"{section}.{name} = {new}: there it is {old}")
    return found
