"""The kinds of heads: what they compute, what is trained, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import head_config, train_config
from safetensors import safe_open
from tiny import (
    ANSWERS,
    ARCHITECTURES,
    LONG_ANSWERS,
    NO_TARGET,
    Architecture,
    random_rows,
    reference,
    tiny_model,
    tolerance,
    with_adapters,
)

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import trained_weights
from lmsys_unsloth.model.answer_head import FILE, AnswerHead, answer_head, attach_head
from lmsys_unsloth.model.batch import Batch, collate
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.train.losses import answer_loss

FOUR = (*ANSWERS, (211,))
TRAINED = ("lm_trained", "linear")
by_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def unlabelled(rows: list[np.ndarray]) -> Batch:
    return collate(rows, [NO_TARGET] * len(rows))


def last_states(model: Any, rows: list[np.ndarray]) -> torch.Tensor:
    """Hidden states at the slot by transformers' forward pass on each row alone, ``[rows, width]``."""
    with torch.no_grad():
        return torch.stack([model.model(torch.tensor(ids)[None]).last_hidden_state[0, -1] for ids in rows])


@by_architecture
def test_a_trained_copy_of_the_lm_head_starts_where_the_lm_head_is(architecture: Architecture) -> None:
    model, batch = tiny_model(architecture), unlabelled(random_rows())
    copied, frozen = (AnswerHead(model, head_config(kind), ANSWERS) for kind in ("lm_trained", "lm"))
    assert copied.weight is not None and copied.weight.dtype == torch.float32
    assert not list(frozen.parameters())
    with torch.no_grad():
        assert torch.equal(*(head.logits(FastDecoder(model), batch) for head in (copied, frozen)))


@pytest.mark.numeric
@by_architecture
@pytest.mark.parametrize("kind", TRAINED)
def test_trained_heads_and_their_gradients_equal_plain_torch(architecture: Architecture, kind: str) -> None:
    model, rows = tiny_model(architecture), random_rows(5)
    head = attach_head(model, head_config(kind), ANSWERS, seed=3)
    assert head.weight is not None
    with torch.no_grad():
        head.weight += 0.1
    weight = head.weight.detach().clone().requires_grad_()
    labels = [0, 1, 2, 1, 0]
    logits = last_states(model, rows) @ weight.T
    if kind == "lm_trained" and architecture == "gemma2":
        logits = 30 * torch.tanh(logits / 30)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()
    batch = collate(rows, np.eye(3)[labels])
    answer_loss(FastDecoder(model), batch, train_config(loss="answers")).backward()
    found = head.logits(FastDecoder(model), batch)
    rounding = tolerance(products=5, scale=float(logits.detach().abs().max()))
    torch.testing.assert_close(found, logits, atol=rounding, rtol=0)
    atol = tolerance(products=5, passes=2, scale=float(weight.grad.abs().max()))  # type: ignore[union-attr]
    torch.testing.assert_close(head.weight.grad, weight.grad, atol=atol, rtol=0)


def test_a_new_classifier_is_small_and_depends_on_the_seed_only() -> None:
    model = tiny_model("gemma2")
    one, same, other = (
        AnswerHead(model, head_config("linear"), FOUR, seed=seed).weight for seed in (1, 1, 2)
    )
    assert one is not None and same is not None and other is not None
    assert one.shape == (4, 64) and torch.equal(one, same) and not torch.equal(one, other)
    assert 0.01 < one.std() < 0.03  # transformers' initializer_range is 0.02
    assert abs(one.mean()) < 4 * 0.02 / one.numel() ** 0.5  # four standard errors


def test_a_new_classifier_of_a_model_without_initializer_range_is_as_small() -> None:
    model = tiny_model("llama")
    facts = {key: value for key, value in vars(model.config).items() if key != "initializer_range"}
    model.config = SimpleNamespace(**facts)
    weight = AnswerHead(model, head_config("linear"), FOUR).weight
    assert weight is not None and 0.01 < weight.std() < 0.03


@pytest.mark.parametrize(("kind", "rows"), [("lm", 1), ("lm_trained", 1), ("linear", 1), ("davidson", 2)])
def test_only_a_head_of_pairs_keeps_rows_together(kind: str, rows: int) -> None:
    assert AnswerHead(tiny_model("llama"), head_config(kind), ANSWERS).rows_per_unit == rows


def test_trained_heads_take_answers_of_one_token() -> None:
    with pytest.raises(ValueError, match="must be one token each"):
        AnswerHead(tiny_model("llama"), head_config("linear"), LONG_ANSWERS)


@pytest.mark.numeric
@by_architecture
@pytest.mark.parametrize("answers", [ANSWERS, FOUR, LONG_ANSWERS])
def test_davidson_is_symmetric_in_the_responses(architecture: Architecture, answers: Any) -> None:
    model, rows = tiny_model(architecture), random_rows(6)
    head, decoder = AnswerHead(model, head_config("davidson"), answers), FastDecoder(model)
    with torch.no_grad():
        found = head.probabilities(decoder, unlabelled(rows))
        logits = head.logits(decoder, unlabelled(rows))
    assert torch.equal(found[::2], found[1::2][:, [1, 0, 2]])
    exchanged = [1, 0, *range(2, len(answers))]
    d, ties = [], []
    for row, copied in zip(logits[::2], logits[1::2][:, exchanged], strict=True):
        mean = (row + copied) / 2
        d.append(mean[0] - mean[1])
        ties.append((mean[2:] - mean[:2].mean()).exp().sum())
    difference, tie = torch.stack(d), torch.stack(ties)
    weights = torch.stack([(difference / 2).exp(), (-difference / 2).exp(), tie], dim=1)  # Davidson 1970
    expected = weights / weights.sum(1, keepdim=True)
    atol = tolerance(terms=4, scale=float(logits.abs().max()))
    torch.testing.assert_close(found[::2], expected, atol=atol, rtol=0)
    with pytest.raises(ValueError, match="5 rows, but every row needs its swapped copy"):
        head.log_probabilities(decoder, unlabelled(rows[:5]))


@pytest.mark.numeric
@by_architecture
def test_both_bad_counts_as_a_tie(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows(4)
    head = AnswerHead(model, head_config(), FOUR)
    with torch.no_grad():
        found = head.probabilities(FastDecoder(model), unlabelled(rows))
    four = torch.stack([reference(model, ids, FOUR) for ids in rows])
    expected = torch.cat([four[:, :2], four[:, 2:].sum(1, keepdim=True)], dim=1)
    torch.testing.assert_close(found, expected, atol=tolerance(), rtol=0)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_trained_head_is_saved_and_loaded_exactly(kind: str, tmp_path: Path) -> None:
    model = with_adapters(tiny_model("llama"))
    head = attach_head(model, head_config(kind), ANSWERS)
    with torch.no_grad():
        head.weight += 1  # type: ignore[operator]
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="np") as stored:
        assert not [name for name in stored.keys() if "head" in name]  # noqa: SIM118
    with pytest.raises(UserError, match=rf"holds no {FILE}, but head.kind = {kind} has trained weights"):
        attach_head(model, head_config(kind), ANSWERS, folder=tmp_path)
    head.save(tmp_path)
    loaded = attach_head(model, head_config(kind), ANSWERS, folder=tmp_path)
    assert loaded is answer_head(model) is not head
    assert torch.equal(loaded.weight, head.weight)  # type: ignore[arg-type]
    for other in {"lm", "linear", "lm_trained", "davidson"} - {kind}:
        with pytest.raises(UserError, match=rf"head.kind = {other}: .* was trained with head.kind={kind}"):
            attach_head(model, head_config(other), ANSWERS, folder=tmp_path)
    with pytest.raises(UserError, match=r"was trained for the answer tokens \[\[11\], \[29\], \[173\]\]"):
        attach_head(model, head_config(kind), FOUR, folder=tmp_path)


@pytest.mark.parametrize("kind", ["lm", "davidson"])
def test_heads_without_weights_write_nothing(kind: str, tmp_path: Path) -> None:
    head = AnswerHead(tiny_model("llama"), head_config(kind), ANSWERS)
    head.save(tmp_path)
    head.load(tmp_path, offset=True)
    assert not list(tmp_path.iterdir())


def test_the_optimiser_sees_the_head_and_removing_adapters_removes_it() -> None:
    base = tiny_model("llama")
    model: Any = with_adapters(copy.deepcopy(base))
    head = attach_head(model, head_config("linear"), ANSWERS)
    assert any(parameter is head.weight for parameter in model.parameters())
    bare = trained_weights.remove_adapters(model)
    assert not [name for name, _ in bare.named_modules() if "answer_head" in name]
