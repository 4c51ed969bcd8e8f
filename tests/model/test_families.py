"""Every family: the fast decoder computes what transformers' own class computes, in float32."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import lora_config, model_config, train_config
from tiny import (
    VOCABULARY,
    kept_for_backward,
    loss_of,
    probabilities,
    random_rows,
    reference,
    save_word_tokenizer,
    tolerance,
    with_adapters,
)
from tiny_families import VARIANTS, family_model

from lmsys_unsloth.model import loading, memory, parity, trained_weights
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder, causal_lm
from lmsys_unsloth.model.families import known

LABELS = np.eye(3)[[0, 1, 2, 1, 0, 2]]


def targets(model: Any) -> list[str]:
    """All linear layers, under the names that the family gives them."""
    family = known.FAMILIES[model.config.model_type]
    return list(family.projections)


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_probabilities_are_those_of_the_models_own_class(variant: str) -> None:
    model, rows = family_model(variant), random_rows()
    found = probabilities(model, rows)
    expected = torch.stack([reference(model, ids) for ids in rows])
    torch.testing.assert_close(found, expected, atol=tolerance(passes=2), rtol=0)


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_the_reference_decoders(variant: str) -> None:
    base = family_model(variant)
    model = with_adapters(base, target_modules=targets(base))
    batch, found = collate(random_rows(), LABELS), []
    for decoder in (FastDecoder(model), ReferenceDecoder(model)):
        model.zero_grad()
        loss = loss_of(decoder, batch)
        loss.backward()
        found.append((loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    (loss, gradients), (expected, reference_gradients) = found
    torch.testing.assert_close(loss, expected, rtol=tolerance(), atol=0)
    assert gradients.keys() == reference_gradients.keys() and gradients
    for name, gradient in reference_gradients.items():
        difference = float((gradients[name] - gradient).norm() / gradient.norm())
        assert difference <= tolerance(passes=2), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_bytes_are_what_a_layer_keeps(variant: str) -> None:
    kept, row_length = {}, 8  # within every window
    for layers, rows in itertools.product((4, 8), (1, 3)):
        changes = {"layer_types": layers // 2 * ["sliding_attention", "full_attention"]}
        base = family_model(variant, num_hidden_layers=layers, **(changes if variant == "Gemma 3" else {}))
        decoder = FastDecoder(with_adapters(base, target_modules=targets(base)).train())
        with kept_for_backward(decoder.model) as counted:
            loss = loss_of(decoder, collate([np.full(row_length, 7)] * rows, np.eye(3)[:rows]))
        del loss
        kept[layers, rows] = counted.bytes
    measured = (kept[8, 3] - kept[4, 3] - kept[8, 1] + kept[4, 1]) / (4 * 2 * row_length)
    assert decoder.activation_bytes(row_length) == measured


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shapes_of_linear_layers_follow_from_the_configuration(variant: str) -> None:
    model: Any = family_model(variant)
    shapes = memory.projection_shapes(model.config.to_dict())
    named = causal_lm(model).model.layers[0].named_modules()  # type: ignore[index,union-attr]
    linear = {name.rpartition(".")[2]: m for name, m in named if isinstance(m, torch.nn.Linear)}
    assert shapes == {name: (module.in_features, module.out_features) for name, module in linear.items()}


def test_names_of_adapted_layers_are_those_of_the_family() -> None:
    names = ["q_proj", "v_proj", "o_proj", "up_proj"]
    assert known.LLAMA.adapted(names) == names
    assert known.PHI3.adapted(names) == ["qkv_proj", "o_proj", "gate_up_proj"]


@pytest.mark.parametrize(
    ("variant", "changes", "reason"),
    [
        (
            "Phi-4",
            {
                "rope_parameters": {
                    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
                    "long_factor": [1.0] * 8, "original_max_position_embeddings": 64,
                }
            },
            "length of the row",
        ),
        ("Gemma 3", {"use_bidirectional_attention": True}, "bidirectional"),
    ],
)  # fmt: skip
def test_variants_that_are_computed_differently_are_refused(
    variant: str, changes: dict[str, Any], reason: str
) -> None:
    model = family_model(variant, **changes)
    with pytest.raises(ValueError, match=reason):
        FastDecoder(model)


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["4bit", "bf16"])
@pytest.mark.parametrize("variant", ["Gemma 3", "Qwen 2.5", "Qwen 3", "Mistral Nemo", "Phi-4", "OLMo 2"])
def test_models_loaded_in_4_bits_agree_with_their_own_forward_pass(
    variant: str, resident: Any, tmp_path: Path
) -> None:
    """Llama and Gemma 2 are tested in test_loading.py; here unsloth loads the others, and adds adapters."""
    family_model(variant, max_position_embeddings=4096).save_pretrained(tmp_path)
    save_word_tokenizer(tmp_path, VOCABULARY)
    config = model_config(tmp_path, load_in_4bit=True, resident=resident, dtype="float32")
    base = loading.load_model(config, train_config())
    model = trained_weights.make_trainable(base, lora_config(), train_config(), seed=0)
    adapted = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in model.named_parameters() if "lora_A" in n}
    assert adapted == set(known.FAMILIES[VARIANTS[variant][0]].projections)
    batch = collate(random_rows(), LABELS)
    with parity.random_updates(model):
        distances = parity.parity_distances(
            FastDecoder(model), ReferenceDecoder(model), batch, gradients=True
        )
    assert max(distances) < tolerance(passes=2)
