"""Both decoders against plain transformers, eager, float32: the guard against silently wrong numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import (
    ANSWERS,
    ARCHITECTURES,
    LONG_ANSWERS,
    NO_TARGET,
    VOCABULARY,
    Architecture,
    random_rows,
    reference,
    tiny_model,
    with_adapters,
)

from lmsys_unsloth.model.answer_head import answer_loss, answer_probabilities, answer_scores, head_logits
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder, OrdinaryDecoder

pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)
both_decoders = pytest.mark.parametrize("decoder", [FastDecoder, OrdinaryDecoder])


def ours(
    model: Any, rows: list[np.ndarray], answers: Any = ANSWERS, decoder: Any = FastDecoder
) -> torch.Tensor:
    with torch.no_grad():
        return answer_probabilities(decoder(model), collate(rows, [NO_TARGET] * len(rows)), answers)


@both_decoders
def test_probabilities_equal_transformers(architecture: Architecture, decoder: Any) -> None:
    model, rows = tiny_model(architecture), random_rows()
    expected = torch.stack([reference(model, ids) for ids in rows])
    torch.testing.assert_close(ours(model, rows, decoder=decoder), expected, atol=1e-5, rtol=0)


@both_decoders
def test_probabilities_do_not_depend_on_the_batch(architecture: Architecture, decoder: Any) -> None:
    model, rows = tiny_model(architecture), random_rows(8)
    together = ours(model, rows, decoder=decoder)
    alone = torch.cat([ours(model, [row], decoder=decoder) for row in rows])
    shuffled = ours(model, rows[::-1], decoder=decoder).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, shuffled, atol=1e-5, rtol=0)


def test_left_padding_in_transformers_gives_the_same(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows()
    longest = max(map(len, rows))
    ids = torch.tensor(np.stack([np.pad(row, (longest - len(row), 0)) for row in rows]))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    left = logits[:, [answer[0] for answer in ANSWERS]].softmax(-1)
    torch.testing.assert_close(ours(model, rows), left, atol=1e-5, rtol=0)


@both_decoders
def test_adapters_survive_saving_and_loading(
    architecture: Architecture, decoder: Any, tmp_path: Path
) -> None:
    base, rows = tiny_model(architecture), random_rows()
    adapted = with_adapters(copy.deepcopy(base))
    expected = torch.stack([reference(adapted, ids) for ids in rows])
    assert (expected - torch.stack([reference(base, ids) for ids in rows])).abs().max() > 1e-3
    torch.testing.assert_close(ours(adapted, rows, decoder=decoder), expected, atol=1e-5, rtol=0)
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(ours(reloaded, rows, decoder=decoder), expected, atol=1e-6, rtol=0)


def test_head_is_float32_and_equals_the_model_s_own(architecture: Architecture) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    states = torch.randn(3, 64, dtype=torch.bfloat16)
    logits = head_logits(model, states)
    assert logits.dtype == torch.float32 and logits.shape == (3, VOCABULARY)
    weight = model.get_output_embeddings().weight.float()  # type: ignore[operator]
    exact = states.float() @ weight.T
    if architecture == "gemma2":
        exact = 30 * torch.tanh(exact / 30)
    torch.testing.assert_close(logits, exact, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(head_logits(model, states, [5, 9]), exact[:, [5, 9]], atol=1e-5, rtol=1e-6)


@both_decoders
def test_vocabulary_loss_and_gradients_equal_transformers(architecture: Architecture, decoder: Any) -> None:
    base, rows = tiny_model(architecture), random_rows(5)
    labels = [0, 1, 2, 1, 0]
    model, twin = with_adapters(copy.deepcopy(base)), with_adapters(copy.deepcopy(base))
    targets = np.eye(3)[labels]
    loss = answer_loss(decoder(model), collate(rows, targets), ANSWERS, "vocabulary")
    loss.backward()
    expected = torch.zeros(())
    for ids, label in zip(rows, labels, strict=True):
        logits = twin(input_ids=torch.tensor(ids)[None]).logits[0, -1]
        expected = expected + torch.nn.functional.cross_entropy(logits, torch.tensor(ANSWERS[label][0]))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for (name, ours_), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if ours_.requires_grad:
            scale = theirs.grad.abs().max()
            torch.testing.assert_close(ours_.grad / scale, theirs.grad / scale, rtol=0, atol=1e-4, msg=name)


def test_answers_loss_is_over_three_and_takes_soft_labels(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows(4)
    soft = torch.tensor([[0.7, 0.2, 0.1], [1, 0, 0], [0, 0, 1], [0.3, 0.3, 0.4]])
    loss = answer_loss(FastDecoder(model), collate(rows, soft.numpy()), ANSWERS, "answers")
    by_hand = -(soft * ours(model, rows).log()).sum()
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-6)


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
        torch.testing.assert_close(
            answer_scores(decoder(model), batch, LONG_ANSWERS), torch.stack(expected), atol=1e-4, rtol=1e-5
        )


def test_micro_batches_do_not_change_the_gradient(architecture: Architecture) -> None:
    base, rows = tiny_model(architecture), random_rows(8)
    targets = np.eye(3)[[0, 1, 2, 1, 0, 2, 2, 1]]

    def gradients(sizes: list[int]) -> list[torch.Tensor]:
        model, start = with_adapters(copy.deepcopy(base)), 0
        for size in sizes:
            part = slice(start, start + size)
            (
                answer_loss(FastDecoder(model), collate(rows[part], targets[part]), ANSWERS, "vocabulary") / 8
            ).backward()
            start += size
        return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]

    for split in ([1] * 8, [3, 5]):
        for whole, parts in zip(gradients([8]), gradients(split), strict=True):
            torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_a_wrong_setup_is_visible(architecture: Architecture) -> None:
    """A random head, a missing cap or a doubled BOS move the probabilities far beyond rounding."""
    model, rows = tiny_model(architecture), random_rows()
    right = ours(model, rows)
    doubled = ours(model, [np.concatenate([ids[:1], ids]) for ids in rows])
    assert (doubled - right).abs().max() > 1e-3
    broken = copy.deepcopy(model)
    broken.lm_head.weight = torch.nn.Parameter(torch.randn_like(broken.lm_head.weight) * 0.25)  # type: ignore
    assert (ours(broken, rows) - right).abs().max() > 1e-2
    if architecture == "gemma2":
        for cap in ("final_logit_softcapping", "attn_logit_softcapping"):
            uncapped = tiny_model(architecture, **{cap: None})
            assert (ours(uncapped, rows) - right).abs().max() > 1e-3, cap
