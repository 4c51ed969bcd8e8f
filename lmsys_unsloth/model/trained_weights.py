"""The weights that a training changes, adapters or whole layers: made trainable, saved, loaded, averaged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmsys_unsloth.config.schema import LoraConfig, ModelConfig, TrainConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing_folder, write_json
from lmsys_unsloth.data.form.offset import OFFSET_FILE, FormOffset
from lmsys_unsloth.model.answer_head import answer_head
from lmsys_unsloth.model.decoder import compute_dtype
from lmsys_unsloth.model.families import known
from lmsys_unsloth.model.loading import unsloth_checkpointing
from lmsys_unsloth.model.unsloth_import import import_unsloth, output_to_log

if TYPE_CHECKING:
    from peft import PeftModel

_ADAPTERS, _FULL_WEIGHTS = "adapter_model.safetensors", "weights.safetensors"
"""Names of adapters, as PEFT calls them, and of fully trained weights in a run's ``adapter`` folder."""

LAYER = re.compile(r"\.(\d+)\.")
"""Finds the index of the layer in the name of a parameter, whatever the model's class calls its layers."""


def make_trainable(model: nn.Module, config: LoraConfig, train: TrainConfig, *, seed: int) -> nn.Module:
    """Add new LoRA adapters, or for ``lora.kind=full`` make the linear layers themselves trainable.

    Raises:
        UserError: ``lora.first_layer`` is above the model's last layer, or ``lora.target_modules`` names
            linear layers that the model does not have.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    depth = cast(Any, model).config.num_hidden_layers
    if config.first_layer >= depth:
        raise UserError(
            f"lora.first_layer = {config.first_layer}: the model has {depth} layers, "
            "so nothing would be trained.\n"
            f"  Choose 0 to {depth - 1}."
        )
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if LAYER.search(name) and isinstance(module, (nn.Linear, Conv1D))
    }
    if missing := set(_targets(model, config)) - names:
        raise UserError(missing_layers(missing, names))
    if config.kind == "full":
        return _train_all_weights(model, config)
    return cast(nn.Module, _add_adapters(model, config, train, seed))


def _train_all_weights(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Train the target linear layers from ``first_layer`` on, in float32; everything else is frozen.

    In bfloat16, updates smaller than 1/256 of a weight would be rounded away.
    """
    model.requires_grad_(False)
    targets = _targets(model, config)
    for name, module in model.named_modules():
        layer = LAYER.search(name)
        if layer is None or int(layer[1]) < config.first_layer:
            continue
        if name.rpartition(".")[2] in targets:
            module.weight = nn.Parameter(cast(Tensor, module.weight).detach().float())
    return model


def _targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the target linear layers in the model's own terms."""
    family = known.family_of({"model_type": cast(Any, model).config.model_type})
    return list(config.target_modules) if family is None else family.adapted(config.target_modules)


def missing_layers(missing: Collection[str], names: Collection[str]) -> str:
    """Message that ``lora.target_modules`` holds the ``missing`` ones, but the model's are ``names``."""
    return (
        f"lora.target_modules: the model has no linear layers {', '.join(sorted(missing))}; set "
        f"lora.target_modules=[{','.join(sorted(names))}], which are all that it has, or some of them"
    )


def _add_adapters(model: nn.Module, config: LoraConfig, train: TrainConfig, seed: int) -> PeftModel:
    unsloth, depth = import_unsloth(), cast(Any, model).config.num_hidden_layers
    with output_to_log():
        adapted = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=_targets(model, config),
            layers_to_transform=list(range(config.first_layer, depth)) if config.first_layer else None,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            bias="none",
            use_gradient_checkpointing=unsloth_checkpointing(train),
            random_state=seed,
        )
    return cast("PeftModel", adapted)


def load_adapters(model: nn.Module, folder: Path) -> nn.Module:
    """Load trained adapters, or fully trained weights, onto the base model that they were trained on.

    Raises:
        UserError: the folder holds neither in safetensors format.
    """
    from peft import PeftModel

    if (folder / _FULL_WEIGHTS).is_file():
        stored = read_weights(folder / _FULL_WEIGHTS)
        named = {name: p for name, p in model.named_parameters() if name in stored}
        copy_weights(named, stored, folder / _FULL_WEIGHTS)
        return model.eval()
    if not (folder / _ADAPTERS).is_file():
        raise UserError(
            f"{folder}: holds no {_ADAPTERS}, so the run has not finished training.\n"
            f"  Resume it: python train.py resume={folder.parent}"
        )
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=False)
    return cast(nn.Module, adapted.eval())


def continue_from(model: nn.Module, folder: Path) -> None:
    """Copy the trained weights of an earlier run into those of ``model``, which trains on from there.

    Raises:
        UserError: the weights are missing, or are those of another model or other LoRA settings.
    """
    from peft import get_peft_model_state_dict

    if hasattr(model, "peft_config"):
        file = folder / _ADAPTERS
        target = get_peft_model_state_dict(model, save_embedding_layers=False)  # shares the weights' memory
    else:
        file, target = folder / _FULL_WEIGHTS, trained_parameters(model)
    copy_weights(target, read_weights(file), file)


def remove_adapters(model: nn.Module) -> nn.Module | None:
    """Discard the adapters that :func:`load_adapters` loaded and return the base model, ready for others.

    None if the base model's own weights were replaced, so that it has to be loaded again.
    """
    return cast(nn.Module, cast(Any, model).unload()) if hasattr(model, "peft_config") else None


def save_adapters(model: nn.Module, folder: Path, config: ModelConfig) -> None:
    """Write adapters in PEFT's format and the head, atomically, naming the base model and no local path.

    Fully trained weights are written in the dtype that the model computes in.
    """
    with replacing_folder(folder) as work:
        answer_head(model).save(work)
        if not hasattr(model, "peft_config"):
            layers = {name: w for name, w in trained_parameters(model).items() if LAYER.search(name)}
            save_weights(layers, work / _FULL_WEIGHTS, compute_dtype(model))
            return
        adapted = cast(Any, model)
        adapted.peft_config["default"].base_model_name_or_path = config.repo or config.name
        # Embeddings are never trained; "auto" would ask the hub whether they changed.
        adapted.save_pretrained(work, safe_serialization=True, save_embedding_layers=False)


def average_adapters(folders: Sequence[Path], target: Path) -> None:
    """Write adapters whose update of every weight is the mean of the updates ``B @ A`` of several adapters.

    A mean of products is not the product of means, so all A and all B are concatenated: exact, with as many
    times the rank as there are adapters (``combination_type="cat"`` in PEFT, which scales rank-stabilised
    adapters wrongly; ``linear`` averages A and B separately, ``svd`` reduces the rank).

    Raises:
        UserError: the adapters differ in more than their values, or hold something other than plain LoRA.
    """
    configs = [json.loads((folder / "adapter_config.json").read_text("utf-8")) for folder in folders]
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    remedy = "  Average the probabilities instead: eval.average=probabilities."
    for folder, config, own in zip(folders, configs, tensors, strict=True):
        for key in ("r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform"):
            first, other = (sorted(v) if isinstance(v, list) else v for v in (configs[0][key], config[key]))
            if first != other:
                raise UserError(
                    f"{folder} and {folders[0]}: {key} = {other} and {first}; only adapters of one shape can "
                    f"be averaged.\n{remedy}"
                )
        others = [name for name in own if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
        if others or own.keys() != tensors[0].keys() or config["rank_pattern"] or config["alpha_pattern"]:
            raise UserError(
                f"{folder}: holds {', '.join(others[:3]) or 'other layers or ranks than the first one'}; "
                f"only plain LoRA adapters of the same layers can be averaged.\n{remedy}"
            )
    count = len(folders)
    averaged = {
        name: torch.cat([own[name] for own in tensors], dim=0)
        if name.endswith(".lora_A.weight")
        else torch.cat([own[name] / count for own in tensors], dim=1)
        for name in tensors[0]
    }
    growth = math.sqrt(count) if configs[0]["use_rslora"] else count  # keeps alpha / r or alpha / sqrt(r)
    config = configs[0] | {"r": configs[0]["r"] * count, "lora_alpha": configs[0]["lora_alpha"] * growth}
    with replacing_folder(target) as work:
        save_file(averaged, work / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(work / "adapter_config.json", config)
        if any((folder / OFFSET_FILE).is_file() for folder in folders):
            FormOffset.average([FormOffset.load(folder) for folder in folders]).save(work)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
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
    copy_weights(trained_parameters(model), read_weights(file), file)


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
