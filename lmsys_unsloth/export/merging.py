"""A trained model with its adapters merged into the base model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.model.answer_head import AnswerHead, answer_head
from lmsys_unsloth.model.decoder import causal_lm, compute_dtype
from lmsys_unsloth.model.lm_head import lm_head_rows
from lmsys_unsloth.predict.models import load_scored_model
from lmsys_unsloth.prompting.encoding import RowEncoder

Base = Literal["trained", "16bit"]
"""Weights that adapters are merged into. ``trained``: those that they were trained on, of a 4-bit base the
dequantised values. ``16bit``: those that the 4-bit base was made from."""


def load_merged(config: Config, encoder: RowEncoder, adapter: Path, base: Base) -> nn.Module:
    """Load a trained model with merged adapters and its answer head, in the dtype that it computes in.

    Args:
        config: of the run.
        encoder: gives the answers' token ids.
        adapter: folder of the trained weights.
        base: what adapters are merged into.
    """
    changes: dict[str, Any] = {"resident": "bf16"}  # dequantises 4-bit weights
    if base == "16bit":
        changes["load_in_4bit"] = False
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    model: Any = load_scored_model(config, encoder, adapter)
    head = answer_head(model)
    if hasattr(model, "peft_config"):
        model = model.merge_and_unload(safe_merge=True)  # refuses weights that are not finite
    model = cast(Any, causal_lm(model))
    model.answer_head = head
    return cast(nn.Module, model.eval())


def take_head(model: nn.Module) -> AnswerHead:
    """Detach and return the answer head, so that the model's weights are those of its class."""
    head = answer_head(model)
    del cast(Any, model).answer_head
    return head


def answer_rows(model: nn.Module, head: AnswerHead) -> Tensor:
    """The head as weights ``[answers, width]`` of a linear classifier, float32, for answers of one token."""
    if head.weight is not None:
        return head.weight.detach().float()
    return lm_head_rows(model, [ids[0] for ids in head.answer_ids]).detach().float()


@torch.no_grad()
def put_rows_into_lm_head(model: nn.Module, head: AnswerHead) -> None:
    """Replace the LM head's rows of the answers by trained ones; the head is no longer tied to embeddings."""
    assert head.weight is not None
    lm = cast(Any, causal_lm(model))
    old = lm.get_output_embeddings()
    new = nn.Linear(1, 1, bias=False)
    new.in_features, new.out_features = old.weight.shape[1], old.weight.shape[0]
    weight = old.weight.detach().clone()
    for ids, row in zip(head.answer_ids, head.weight, strict=True):
        weight[ids[0]] = row.to(weight.dtype)
    new.weight = nn.Parameter(weight, requires_grad=False)
    lm.set_output_embeddings(new)
    lm.config.tie_word_embeddings = False


def plain_config(model: nn.Module) -> Any:
    """The model's configuration as a checkpoint without quantisation has it."""
    config = cast(Any, causal_lm(model)).config
    settings = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "unsloth_version", "unsloth_fixed"):
        settings.pop(key, None)
    plain = type(config)(**settings)
    plain.dtype = compute_dtype(model)
    return plain
