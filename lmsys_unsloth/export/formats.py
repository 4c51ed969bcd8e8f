"""The formats of exported models: what each writes, and which runs it can hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.config.checks import TRAINED_HEADS
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.export import float8, gguf_writer, gptq
from lmsys_unsloth.export.merging import (
    answer_rows,
    plain_config,
    put_rows_into_lm_head,
    take_head,
)
from lmsys_unsloth.model.decoder import causal_lm, compute_dtype
from lmsys_unsloth.prompting.answer_tokens import AnswerIds

SHARD = "2GB"
"""Largest size of a file of weights."""

ANSWER_NAMES = ("A", "B", "tie", "both_bad")
"""Labels of a classifier, in the order of the answers."""


@dataclass(frozen=True)
class Format:
    """A format of exported models."""

    name: str
    write: Callable[[nn.Module, Path, str], None]
    """Writes the weights of a merged model with its answer head; the last argument is the number type."""
    heads: tuple[str, ...]
    """Kinds of heads that it can hold."""
    one_token: bool = False
    """Whether each answer must be one token."""
    quantise: Callable[[Path, Sequence[Sequence[int]]], None] | None = None
    """Quantises the written checkpoint, once the model is out of memory, with the token ids of calibration
    rows."""
    dequantise: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """Plain weights of a checkpoint that transformers does not compute."""


def require_possible(format: Format, config: Config, answers: AnswerIds) -> None:
    """Raise an error if a run's head or answers don't fit a format."""
    if config.head.kind not in format.heads:
        remedy = "format=classifier, format=adapter" if config.head.kind == "linear" else "format=merged16"
        raise UserError(
            f"format={format.name}: can't hold head.kind={config.head.kind}, whose weights are not part of a "
            f"language model.\n  Use {remedy}."
        )
    if format.one_token and any(len(ids) > 1 for ids in answers):
        raise UserError(
            f"format={format.name}: needs answers of one token each, but they are the tokens "
            f"{list(map(list, answers))}.\n  Use format=merged16, or train with other answers."
        )


def exported_head(config: Config) -> str:
    """The kind of head of an exported language model: trained answer rows are part of its LM head."""
    return "lm" if config.head.kind == "lm_trained" else config.head.kind


def _merged(model: nn.Module, folder: Path, _: str) -> None:
    _take_lm_head(model, folder)
    plain_config(model).save_pretrained(folder)
    _save(_state(model), folder)


def _float8(model: nn.Module, folder: Path, _: str) -> None:
    _take_lm_head(model, folder)
    tensors, settings = float8.quantise(model, _state(model))
    config = plain_config(model)
    config.quantization_config = settings
    config.save_pretrained(folder)
    _save(tensors, folder)


def _take_lm_head(model: nn.Module, folder: Path) -> None:
    """Detach the answer head: trained answer rows become part of the LM head, other weights a file."""
    head = take_head(model)
    if head.kind == "lm_trained":
        put_rows_into_lm_head(model, head)
    else:
        head.save(folder)


def _classifier(model: nn.Module, folder: Path, _: str) -> None:
    head = take_head(model)
    lm, config = causal_lm(model), plain_config(model)
    name = type(lm).__name__.replace("ForCausalLM", "ForSequenceClassification")
    import transformers

    if not hasattr(transformers, name):
        raise UserError(
            f"format=classifier: transformers {transformers.__version__} has no {name}; use format=merged16."
        )
    labels = ANSWER_NAMES[: len(head.answer_ids)]
    config.architectures = [name]
    config.id2label, config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    if head.kind != "linear" and (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        config.lmsys_unsloth_cap = cap  # these classes have no cap
    rows = {"score.weight": answer_rows(model, head).to(compute_dtype(model))}
    config.save_pretrained(folder)
    _save({k: v for k, v in _state(model).items() if not k.startswith("lm_head.")} | rows, folder)


def _gguf(model: nn.Module, folder: Path, type: str) -> None:
    _take_lm_head(model, folder)  # format.heads leaves none with weights of its own
    config = plain_config(model)
    config.save_pretrained(folder)  # beside the file, so that prompts are made as in training
    gguf_writer.write(_state(model), config.to_dict(), folder, type)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name as in a checkpoint, tied ones once."""
    lm = cast(Any, causal_lm(model))
    state = {name: parameter.detach() for name, parameter in lm.named_parameters()}
    if lm.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def _save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_torch_state_dict(contiguous, folder, max_shard_size=SHARD, metadata={"format": "pt"})


def copy_adapter(adapter: Path, folder: Path) -> None:
    """Copy a run's trained weights, with the head."""
    for file in sorted(adapter.iterdir()):
        if file.suffix in (".safetensors", ".json"):
            shutil.copyfile(file, folder / file.name)


_ALL = ("lm", "davidson", *TRAINED_HEADS)
_LM = ("lm", "lm_trained", "davidson")
"""Heads that are part of the LM head."""
FORMATS = {
    format.name: format
    for format in (
        Format("merged16", _merged, _ALL),
        Format("classifier", _classifier, _ALL, one_token=True),
        Format("gguf", _gguf, _LM),
        Format("fp8", _float8, _LM, dequantise=float8.dequantise),
        Format("gptq8", _merged, _LM, quantise=gptq.quantise, dequantise=gptq.dequantise),
    )
}
"""All formats but ``adapter``, which needs no model in memory."""


def dtype_name(model: nn.Module) -> str:
    """``bfloat16``, ``float16`` or ``float32``: what the exported weights are stored in."""
    return str(compute_dtype(model)).removeprefix("torch.")


def free_memory() -> None:
    """Give memory of a deleted model back before another one is loaded."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
