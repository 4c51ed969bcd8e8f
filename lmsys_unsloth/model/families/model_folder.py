"""What a model's folder in Hugging Face format holds, read without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lmsys_unsloth.core.errors import UserError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: ``BF16``, or ``U8`` for most packed 4-bit weights."""


def model_settings(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a folder in Hugging Face format.

    Raises:
        UserError: there is no such file, or it is not a JSON object.
    """
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't be read ({error}); download the model again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file}: not a JSON object; download the model again")
    return settings


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Read names, shapes and dtypes of all tensors; empty if the weights are not downloaded yet.

    Raises:
        UserError: a file is damaged or missing.
    """
    found: dict[str, Stored] = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(name)
                    found[name] = Stored(tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: can't be read ({error}); download the model again") from None
    index = folder / "model.safetensors.index.json"
    if files and index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(named - {file.name for file in files}):
            raise UserError(f"{folder}: lacks {', '.join(missing)}; download the rest of the model")
    return found


def require_supported(settings: Mapping[str, Any], name: str) -> None:
    """Check from a model's ``config.json`` that its weights can be read and its class is transformers' own.

    Args:
        settings: content of ``config.json``.
        name: of the model, for messages.

    Raises:
        UserError: lists every reason why the model can't be used.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    kind, problems = str(settings.get("model_type")), []
    if kind not in CLASSES:
        own_code = ", and the code that comes with it (auto_map) is not run" if "auto_map" in settings else ""
        problems.append(
            f"model_type = {kind}: not a causal language model of transformers "
            f"{transformers.__version__}{own_code}; choose a model that transformers has a class for "
            "(docs/models.md)"
        )
    elif "vision_config" in settings:
        problems.append(
            f"model_type = {kind}: reads images too; choose a text-only model (of Gemma 3: model=gemma3-1b)"
        )
    method = (settings.get("quantization_config") or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        problems.append(
            f"quantization_config.quant_method = {method}: bitsandbytes does not read this format; use the "
            "16-bit weights that it was made from, which model.load_in_4bit=true quantises as they are "
            "loaded, or a repository of unsloth whose name ends in -bnb-4bit"
        )
    if problems:
        raise UserError("\n  ".join([f"model={name} can't be used:", *problems]))
