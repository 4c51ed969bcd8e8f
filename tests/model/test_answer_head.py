"""Both decoders against plain transformers (eager, float32), which would show silently wrong numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import head_config
from peft import PeftModel
from tiny import (
    ANSWERS,
    ARCHITECTURES,
    LONG_ANSWERS,
    NO_TARGET,
    VOCABULARY,
    Architecture,
    loss_of,
    probabilities,
    random_rows,
    reference,
    tiny_model,
    tolerance,
    with_adapters,
)

from lmsys_unsloth.model.answer_head import AnswerHead
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder
from lmsys_unsloth.model.lm_head import head_logits

pytestmark = [pytest.mark.numeric, pytest.mark.parametrize("architecture", ARCHITECTURES)]
both_decoders = pytest.mark.parametrize("decoder", [FastDecoder, ReferenceDecoder])
ROUNDING = {"atol": tolerance(), "rtol": 0}
"""Of probabilities: the errors of logits that are close to each other."""


def references(model: Any, rows: list[np.ndarray]) -> torch.Tensor:
    return torch.stack([reference(model, ids) for ids in rows])


@both_decoders
def test_probabilities_equal_transformers(architecture: Architecture, decoder: Any) -> None:
    model, rows = tiny_model(architecture), random_rows()
    torch.testing.assert_close(probabilities(model, rows, decoder), references(model, rows), **ROUNDING)


@both_decoders
def test_probabilities_do_not_depend_on_the_batch(architecture: Architecture, decoder: Any) -> None:
    model, rows = tiny_model(architecture), random_rows(8)
    together = probabilities(model, rows, decoder)
    alone = torch.cat([probabilities(model, [row], decoder) for row in rows])
    shuffled = probabilities(model, rows[::-1], decoder).flip(0)
    torch.testing.assert_close(together, alone, **ROUNDING)
    torch.testing.assert_close(together, shuffled, **ROUNDING)


def test_left_padding_in_transformers_gives_the_same(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows()
    longest = max(map(len, rows))
    ids = torch.tensor(np.stack([np.pad(row, (longest - len(row), 0)) for row in rows]))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    left = logits[:, [answer[0] for answer in ANSWERS]].softmax(-1)
    torch.testing.assert_close(probabilities(model, rows), left, **ROUNDING)


@both_decoders
def test_adapters_survive_saving_and_loading(
    architecture: Architecture, decoder: Any, tmp_path: Path
) -> None:
    base, rows = tiny_model(architecture), random_rows()
    adapted = with_adapters(copy.deepcopy(base))
    expected, computed = references(adapted, rows), probabilities(adapted, rows, decoder)
    assert (expected - references(base, rows)).abs().max() > 1e-3
    torch.testing.assert_close(computed, expected, **ROUNDING)
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(probabilities(reloaded, rows, decoder), computed)
    assert torch.equal(references(reloaded, rows), expected)


def test_head_is_float32_and_equals_the_model_s_own(architecture: Architecture) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    states = torch.randn(3, 64, dtype=torch.bfloat16)
    logits = head_logits(model, states)
    assert logits.dtype == torch.float32 and logits.shape == (3, VOCABULARY)
    weight = model.get_output_embeddings().weight.float()  # type: ignore[operator]
    exact = states.float() @ weight.detach().T
    if architecture == "gemma2":
        exact = 30 * torch.tanh(exact / 30)
    rounding = {"atol": tolerance(terms=64, products=1, scale=float(exact.abs().max())), "rtol": 0}
    torch.testing.assert_close(logits, exact, **rounding)
    torch.testing.assert_close(head_logits(model, states, [5, 9]), exact[:, [5, 9]], **rounding)


@both_decoders
def test_vocabulary_loss_and_gradients_equal_transformers(architecture: Architecture, decoder: Any) -> None:
    base, rows = tiny_model(architecture), random_rows(5)
    labels = [0, 1, 2, 1, 0]
    model, twin = with_adapters(copy.deepcopy(base)), with_adapters(copy.deepcopy(base))
    targets = np.eye(3)[labels]
    loss = loss_of(decoder(model), collate(rows, targets), "vocabulary")
    loss.backward()
    expected = torch.zeros(())
    for ids, label in zip(rows, labels, strict=True):
        logits = twin(input_ids=torch.tensor(ids)[None]).logits[0, -1]
        expected = expected + torch.nn.functional.cross_entropy(logits, torch.tensor(ANSWERS[label][0]))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=tolerance(), atol=0)
    for (name, parameter), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if parameter.requires_grad:
            atol = tolerance(passes=2, scale=float(other.grad.abs().max()))
            torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=atol, msg=name)


def test_answers_loss_is_over_three_and_takes_soft_labels(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows(4)
    soft = torch.tensor([[0.7, 0.2, 0.1], [1, 0, 0], [0, 0, 1], [0.3, 0.3, 0.4]])
    loss = loss_of(FastDecoder(model), collate(rows, soft.numpy()))
    by_hand = -(soft * probabilities(model, rows).log()).sum()
    torch.testing.assert_close(loss, by_hand, rtol=tolerance(terms=len(rows), products=3), atol=0)


@both_decoders
def test_answers_of_several_tokens_score_by_their_full_log_probability(
    architecture: Architecture, decoder: Any
) -> None:
    model, rows = tiny_model(architecture), random_rows(5)
    expected = []
    for ids in rows:
        scores = []
        for answer in LONG_ANSWERS:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([*ids, *answer])[None]).logits[0].log_softmax(-1)
            places = range(len(ids) - 1, len(ids) - 1 + len(answer))
            scores.append(sum(logits[place, token] for place, token in zip(places, answer, strict=True)))
        expected.append(torch.stack(scores))
    batch = collate(rows, [NO_TARGET] * len(rows))
    with torch.no_grad():
        scores = AnswerHead(model, head_config(), LONG_ANSWERS).logits(decoder(model), batch)
    torch.testing.assert_close(scores, torch.stack(expected), rtol=tolerance(), atol=tolerance())


def test_micro_batches_do_not_change_the_gradient(architecture: Architecture) -> None:
    base, rows = tiny_model(architecture), random_rows(8)
    targets = np.eye(3)[[0, 1, 2, 1, 0, 2, 2, 1]]

    def gradients(sizes: list[int]) -> list[torch.Tensor]:
        model, start = with_adapters(copy.deepcopy(base)), 0
        for size in sizes:
            part = slice(start, start + size)
            (loss_of(FastDecoder(model), collate(rows[part], targets[part]), "vocabulary") / 8).backward()
            start += size
        return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]

    for split in ([1] * 8, [3, 5]):
        for whole, parts in zip(gradients([8]), gradients(split), strict=True):
            atol = tolerance(passes=2, scale=float(whole.abs().max()))
            torch.testing.assert_close(parts, whole, rtol=0, atol=atol)


def test_a_wrong_setup_is_visible(architecture: Architecture) -> None:
    """A random head, a missing cap or a doubled BOS move the probabilities far beyond rounding."""
    model, rows = tiny_model(architecture), random_rows()
    right = probabilities(model, rows)
    doubled = probabilities(model, [np.concatenate([ids[:1], ids]) for ids in rows])
    assert (doubled - right).abs().max() > 1e-3
    broken = copy.deepcopy(model)
    broken.lm_head.weight = torch.nn.Parameter(torch.randn_like(broken.lm_head.weight) * 0.25)  # type: ignore
    assert (probabilities(broken, rows) - right).abs().max() > 1e-2
    if architecture == "gemma2":
        for cap in ("final_logit_softcapping", "attn_logit_softcapping"):
            uncapped = tiny_model(architecture, **{cap: None})
            assert (probabilities(uncapped, rows) - right).abs().max() > 1e-3, cap
