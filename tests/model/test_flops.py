"""Operations of the fast decoder against the model's own forward with its whole LM head.

Widths, vocabulary, heads and row lengths are those of Llama 3 8B and Gemma 2 9B divided by 16, so that every
part keeps its share. Models of two and three layers give the cost of one layer and of the rest, from which
that of the real depth follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from factories import head_config
from peft import LoraConfig, get_peft_model
from tiny import ANSWERS, Architecture, loss_of, tiny_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from lmsys_unsloth.model.answer_head import AnswerHead
from lmsys_unsloth.model.batch import Batch, collate
from lmsys_unsloth.model.decoder import FastDecoder

ROW = 1100 // 16
SHAPES: dict[Architecture, dict[str, int]] = {
    "llama": dict(
        hidden_size=256, intermediate_size=896, vocab_size=8016, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32,
    ),
    "gemma2": dict(
        hidden_size=224, intermediate_size=896, vocab_size=16000, num_attention_heads=16,
        num_key_value_heads=8, head_dim=16,
    ),
}  # fmt: skip
DEPTH = {"llama": 32, "gemma2": 42}


def adapted(architecture: Architecture, layers: int) -> Any:
    model: Any = tiny_model(architecture, num_hidden_layers=layers, **SHAPES[architecture])
    return get_peft_model(model, LoraConfig(r=1, target_modules="all-linear"))


def batch(architecture: Architecture) -> Batch:
    random = np.random.default_rng(0)
    rows = [random.integers(3, 8000, ROW) for _ in range(3)]
    return collate(rows, np.eye(3))


def flops(run: Callable[[], Tensor], *, backward: bool) -> int:
    """Count the operations of matrix products, attention's included."""
    # PyTorch's counter leaves out products that are added in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **options: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with sdpa_kernel(SDPBackend.MATH), counter:
        result = run()
        if backward:
            result.backward()
    return int(counter.get_total_flops())


def padded(rows: Batch) -> Tensor:
    return pad_sequence(list(torch.split(rows.input_ids, list(rows.lengths))), batch_first=True)


def model_loss(model: Any, rows: Batch) -> Tensor:
    """The model's own forward and next-token loss at the slot: logits at every position."""
    ids = padded(rows)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = torch.tensor([ANSWERS[0][0], ANSWERS[1][0], ANSWERS[2][0]])
    logits = model(input_ids=ids).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def at_full_depth(architecture: Architecture, count: Callable[[Any], int]) -> float:
    two, three = (count(adapted(architecture, layers)) for layers in (2, 3))
    return two + (three - two) * (DEPTH[architecture] - 2)


@pytest.mark.parametrize(("architecture", "limit"), [("llama", 0.92), ("gemma2", 0.89)])
@pytest.mark.parametrize("kind", ["answers", "vocabulary"])
def test_training_computes_less(architecture: Architecture, limit: float, kind: Any) -> None:
    rows = batch(architecture)
    fast = at_full_depth(
        architecture,
        lambda model: flops(lambda: loss_of(FastDecoder(model), rows, kind), backward=True),
    )
    whole = at_full_depth(architecture, lambda model: flops(lambda: model_loss(model, rows), backward=True))
    assert 0.8 < fast / whole <= limit


@pytest.mark.parametrize(("architecture", "limit"), [("llama", 0.91), ("gemma2", 0.89)])
def test_scoring_computes_less(architecture: Architecture, limit: float) -> None:
    rows = batch(architecture)
    with torch.no_grad():
        fast = at_full_depth(
            architecture,
            lambda model: flops(
                lambda: AnswerHead(model, head_config(), ANSWERS).probabilities(FastDecoder(model), rows),
                backward=False,
            ),
        )
        whole = at_full_depth(
            architecture, lambda model: flops(lambda: model(input_ids=padded(rows)).logits, backward=False)
        )
    assert 0.8 < fast / whole <= limit


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_frozen_lower_layers_save_their_backward_pass(architecture: Architecture) -> None:
    rows, whole = batch(architecture), adapted(architecture, 8)
    total = flops(lambda: loss_of(FastDecoder(whole), rows), backward=True)
    for name, parameter in whole.named_parameters():
        if any(f".layers.{layer}." in name for layer in range(4)):
            parameter.requires_grad_(False)
    frozen = flops(lambda: loss_of(FastDecoder(whole), rows), backward=True)
    assert frozen < 0.8 * total
