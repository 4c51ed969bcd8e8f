"""Offsets by form: which rows get which, when training adds them, and that later predictions have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import head_config, model_config
from tiny import save_tiny_llama, tiny_model
from training_cases import ANSWER_IDS, LORA, TRAIN, fit, rows

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.form.offset import OFFSET_FILE, FormOffset
from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.model.answer_head import AnswerHead, answer_head, attach_head, form_offsets
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.prompting.encoding import EncodedRow

FOUR = (*ANSWER_IDS, (21691,))
ANSWERS_ONLY = TRAIN.model_copy(update={"loss": "answers"})
FORM = head_config(offset="form")


def compared(count: int = 24) -> list[EncodedRow]:
    """The rows of ``training_cases``, each with its own prompt, where the longer response wins."""
    texts = {0: ("long " * 9, "short"), 1: ("short", "long " * 9), 2: ("both " * 3, "same " * 3)}
    return [
        dataclasses.replace(
            row,
            comparison=dataclasses.replace(
                row.comparison,
                prompts=(f"Prompt {number}",),
                responses_a=(texts[number % 3][0],),
                responses_b=(texts[number % 3][1],),
            ),
        )
        for number, row in enumerate(rows(count))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def adapted(folder: Path, data: list[EncodedRow]) -> Any:
    model = trained_weights.make_trainable(loading.load_model(model_config(folder)), LORA, TRAIN, seed=1)
    attach_head(model, FORM, ANSWER_IDS, fitted_on=[row.comparison for row in data])
    return model


def test_training_rows_get_the_offsets_of_a_regression_that_did_not_see_them() -> None:
    from lmsys_unsloth.train.step_dataset import labelled_batch

    data = compared()
    comparisons = [row.comparison for row in data]
    for answer_ids in (ANSWER_IDS, FOUR):
        head = AnswerHead(tiny_model("llama"), FORM, answer_ids)
        assert labelled_batch(data, head).offsets is None
        head.offset = FormOffset.fit(comparisons)
        found = labelled_batch(data, head)
        held_out = head.offset.held_out_logits(comparisons)
        assert found.offsets is not None and found.offsets.shape == found.targets.shape
        torch.testing.assert_close(found.offsets[:, :3], torch.tensor(held_out).float())
        assert torch.equal(found.offsets[:, 2], found.offsets[:, -1])  # "both bad" has that of a tie
        new = form_offsets(head, data)
        assert new is not None and np.array_equal(new[:, :3], head.offset.logits(comparisons))
        parts = found.split(found.padded_tokens // 3)
        assert torch.equal(torch.cat([p.offsets for p in parts if p.offsets is not None]), found.offsets)


def test_offsets_are_added_to_the_logits_of_every_head(folder: Path) -> None:
    from lmsys_unsloth.train.step_dataset import labelled_batch

    data, model = compared(4), loading.load_model(model_config(folder))
    for kind in ("lm", "linear", "davidson"):
        head = attach_head(model, head_config(kind, offset="form"), ANSWER_IDS)
        batch, decoder = labelled_batch(data, head), FastDecoder(model)
        with torch.no_grad():
            plain = head.logits(decoder, batch)
            offsets = torch.tensor([[1.0, -2.0, 0.5]] * 4)
            found = head.logits(decoder, dataclasses.replace(batch, offsets=offsets))
        torch.testing.assert_close(found, plain + offsets)


def test_the_logits_are_scaled_in_predictions_only(folder: Path) -> None:
    from lmsys_unsloth.train.step_dataset import labelled_batch

    data, model = compared(4), loading.load_model(model_config(folder))
    head = attach_head(model, FORM, ANSWER_IDS, fitted_on=[row.comparison for row in data], earlier_rows=1196)
    batch, decoder = labelled_batch(data, head), FastDecoder(model)
    assert batch.offsets is not None
    plain = head.logits(decoder, dataclasses.replace(batch, offsets=None))
    model.train()
    torch.testing.assert_close(head.logits(decoder, batch), plain + batch.offsets)
    model.eval()
    torch.testing.assert_close(head.logits(decoder, batch), plain * 2 / 3 + batch.offsets)
    assert torch.equal(head.logits(decoder, dataclasses.replace(batch, offsets=None)), plain)


def test_a_linear_head_with_an_offset_starts_at_the_offset(folder: Path) -> None:
    model = loading.load_model(model_config(folder))
    plain, started = (
        AnswerHead(model, head_config("linear", offset=offset), ANSWER_IDS, seed=3).weight
        for offset in ("none", "form")
    )
    assert plain is not None and started is not None
    torch.testing.assert_close(started, plain / 1000)


@pytest.mark.slow
def test_the_offset_joins_in_the_second_half(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import trainer

    data, seen, ordinary = compared(), [], trainer.answer_loss

    def watched(decoder: Any, batch: Any, config: Any) -> torch.Tensor:
        seen.append((batch.offsets is not None, len(batch)))
        return ordinary(decoder, batch, config)

    monkeypatch.setattr(trainer, "answer_loss", watched)
    # 24 rows, 4 a step, twice: 12 steps.
    fit(adapted(folder, data), folder, Run(tmp_path), ANSWERS_ONLY.model_copy(update={"epochs": 2}), data)
    rows_without, rows_with = (sum(n for has, n in seen if has is kind) for kind in (False, True))
    assert [has for has, _ in seen] == sorted(has for has, _ in seen)
    assert rows_without == rows_with == 24


@pytest.mark.slow
def test_with_a_time_budget_the_offset_joins_after_half_of_the_time() -> None:
    """Such a training may end long before half of the planned steps."""
    from lmsys_unsloth.train import trainer

    def progress(step: int, budget: Any) -> float:
        state = SimpleNamespace(global_step=step, max_steps=100)
        found: float = trainer.AnswerTrainer._progress.fget(SimpleNamespace(state=state, budget=budget))
        return found

    assert progress(50, None) == trainer.OFFSET_FROM
    assert progress(3, SimpleNamespace(progress=0.75)) == 0.75


@pytest.mark.slow
@pytest.mark.numeric
def test_predictions_have_the_offset_after_saving_and_loading(folder: Path, tmp_path: Path) -> None:
    data = compared()
    model = adapted(folder, data)
    fit(model, folder, Run(tmp_path), ANSWERS_ONLY.model_copy(update={"epochs": 2}), data)
    new = [
        dataclasses.replace(row, comparison=dataclasses.replace(row.comparison, prompts=("new",)))
        for row in data
    ]
    probabilities = score_rows(FastDecoder(model), new, 256)
    head = answer_head(model)
    offsets, head.offset = form_offsets(head, new), None
    assert offsets is not None
    scale = len(data) / (len(data) + 600)
    without = score_rows(FastDecoder(model), new, 256) ** scale * np.exp(offsets)
    rounding = len(ANSWER_IDS) * 2.0**-20  # of probabilities in float32
    np.testing.assert_allclose(probabilities, without / without.sum(1, keepdims=True), atol=rounding)

    head.offset = FormOffset.fit([row.comparison for row in data])
    saved = tmp_path / "adapter"
    trained_weights.save_adapters(model, saved, model_config(folder))
    fresh = trained_weights.load_adapters(loading.load_model(model_config(folder)), saved)
    attach_head(fresh, FORM, ANSWER_IDS, folder=saved)
    assert np.array_equal(score_rows(FastDecoder(fresh), new, 256), probabilities)
    attach_head(fresh, head_config(), ANSWER_IDS, folder=saved)
    assert not np.allclose(score_rows(FastDecoder(fresh), new, 256), probabilities, atol=0.01)
    (saved / OFFSET_FILE).unlink()
    with pytest.raises(UserError, match="or name a run that was trained with"):
        attach_head(fresh, FORM, ANSWER_IDS, folder=saved)


@pytest.mark.slow
def test_averaged_adapters_have_the_averaged_offset(folder: Path, tmp_path: Path) -> None:
    data, folders = compared(), []
    for number in range(2):
        folders.append(tmp_path / str(number))
        part = data[number * 12 : number * 12 + 12]
        trained_weights.save_adapters(adapted(folder, part), folders[-1], model_config(folder))
    trained_weights.average_adapters(folders, tmp_path / "mean")
    comparisons = [row.comparison for row in data]
    each = [FormOffset.load(path).logits(comparisons) for path in folders]
    found = FormOffset.load(tmp_path / "mean").logits(comparisons)
    np.testing.assert_allclose(found, np.mean(each, axis=0))
    assert not np.allclose(each[0], each[1])
    assert FormOffset.load(tmp_path / "mean").logit_scale == pytest.approx(12 / 612)
