"""Losses against transformers' own and against formulas written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import head_config, train_config
from tiny import (
    ANSWERS,
    ARCHITECTURES,
    EOS,
    LONG_ANSWERS,
    Architecture,
    probabilities,
    random_rows,
    tiny_model,
    tolerance,
)

from lmsys_unsloth.model.answer_head import attach_head
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder
from lmsys_unsloth.train.losses import answer_loss

pytestmark = [pytest.mark.numeric, pytest.mark.parametrize("architecture", ARCHITECTURES)]
SOFT = torch.tensor([[0.7, 0.2, 0.1], [1, 0, 0], [0.45, 0.1, 0.45], [0.3, 0.3, 0.4]])


def loss(
    model: Any, rows: Any, targets: Any, answers: Any = ANSWERS, decoder: Any = FastDecoder, **changes: Any
) -> Any:
    attach_head(model, head_config(), answers, eos_id=EOS)
    with torch.no_grad():
        return answer_loss(decoder(model), collate(rows, targets), train_config(**changes))


@pytest.mark.parametrize("decoder", [FastDecoder, ReferenceDecoder])
@pytest.mark.parametrize("answers", [ANSWERS, LONG_ANSWERS])
def test_answer_and_eos_are_what_transformers_trains_on(
    architecture: Architecture, decoder: Any, answers: Any
) -> None:
    model, rows, labels = tiny_model(architecture), random_rows(5), [0, 1, 2, 1, 0]
    expected = 0.0
    for ids, label in zip(rows, labels, strict=True):
        completion = [*answers[label], EOS]
        targets = torch.tensor([[-100] * len(ids) + completion])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([[*ids, *completion]]), labels=targets).loss
        expected += len(completion) * float(mean)
    found = loss(model, rows, np.eye(3)[labels], answers, decoder, loss="answer_eos")
    torch.testing.assert_close(float(found), expected, rtol=tolerance(), atol=0)


def test_eos_follows_the_most_probable_answer_of_a_soft_target(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows(4)
    hard = np.eye(3)[[0, 0, 0, 2]]
    eos = loss(model, rows, hard, loss="answer_eos") - loss(model, rows, hard, loss="vocabulary")
    found = loss(model, rows, SOFT.numpy(), loss="answer_eos")
    expected = loss(model, rows, SOFT.numpy(), loss="vocabulary") + eos
    torch.testing.assert_close(found, expected, rtol=tolerance(products=8), atol=0)


def test_smoothing_and_cosine_are_those_of_the_formulas(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows(4)
    p = probabilities(model, rows).double()
    smooth = (0.9 * SOFT + 0.1 / 3).double()
    cosine = (p * smooth).sum(1) / (p.norm(dim=1) * smooth.norm(dim=1))
    expected = -(smooth * p.log()).sum() + 0.5 * (1 - cosine).sum()
    found = loss(model, rows, SOFT.numpy(), loss="answers", label_smoothing=0.1, cosine_weight=0.5)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance(), atol=0)


def test_a_pair_has_twice_the_loss_of_its_rows_average_prediction(architecture: Architecture) -> None:
    model, rows = tiny_model(architecture), random_rows(4)
    head = attach_head(model, head_config("davidson"), ANSWERS)
    targets = np.eye(3)[[0, 1, 2, 2]]
    batch = collate(rows, targets, rows_per_unit=2)
    with torch.no_grad():
        found = answer_loss(FastDecoder(model), batch, train_config(loss="answers"))
        log_probabilities = head.log_probabilities(FastDecoder(model), batch)
    expected = -2 * (log_probabilities[0, 0] + log_probabilities[2, 2])
    torch.testing.assert_close(found, expected, rtol=tolerance(terms=4), atol=0)
