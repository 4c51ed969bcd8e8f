"""Every head and every loss through the real trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import head_config, model_config
from tiny import save_tiny_llama
from training_cases import ANSWER_IDS, TRAIN, adapted, adapters, rows, with_head

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import TrainConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.model.answer_head import AnswerHead, answer_head, attach_head
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.report.tracking import NoTracker

FOUR = (*ANSWER_IDS, (21691,))
ANSWERS_ONLY = TRAIN.model_copy(update={"loss": "answers"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def fit(model: Any, folder: Path, run: Run, config: TrainConfig, data: Any = None) -> None:
    """Train on units of one row, or of two for ``davidson``: the rows' content does not matter here."""
    from lmsys_unsloth.train import training

    data = rows() if data is None else data
    size = answer_head(model).rows_per_unit
    units = [list(range(start, start + size)) for start in range(0, len(data), size)]
    tokenizer = loading.load_tokenizer(model_config(folder))
    training.train(model, tokenizer, data, units, config, run=run, seed=5, metric_logger=NoTracker())


def labelled_batch(*arguments: Any) -> Any:
    from lmsys_unsloth.train import step_dataset

    return step_dataset.labelled_batch(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "answer_ids"),
    [
        ("lm", {"loss": "answers", "label_smoothing": 0.1, "cosine_weight": 0.5}, ANSWER_IDS),
        ("lm", {"loss": "vocabulary"}, FOUR),
        ("lm", {"loss": "answer_eos"}, ANSWER_IDS),
        ("lm", {"loss": "answer_eos"}, ((330,), (389, 7), (47832, 5, 9))),
        ("lm_trained", {"loss": "answers"}, FOUR),
        ("linear", {"loss": "answers"}, ANSWER_IDS),
        ("davidson", {"loss": "answers"}, ANSWER_IDS),
        ("davidson", {"loss": "answers"}, FOUR),
    ],
)
def test_a_step_changes_adapters_and_head(
    folder: Path, tmp_path: Path, kind: str, changes: dict[str, Any], answer_ids: Any
) -> None:
    model = with_head(adapted(folder), kind, answer_ids)
    before = adapters(model)
    fit(model, folder, Run(tmp_path), TRAIN.model_copy(update={**changes, "max_steps": 1}))
    changed = {name for name, tensor in adapters(model).items() if not torch.equal(tensor, before[name])}
    # A of each adapter gets no gradient while B is zero.
    assert changed == {name for name in before if "lora_B" in name or "answer_head" in name}
    assert ("answer_head.weight" in changed) == (kind in ("lm_trained", "linear"))


@pytest.mark.slow
@pytest.mark.numeric
def test_a_linear_classifier_learns_and_is_saved_with_the_adapters(folder: Path, tmp_path: Path) -> None:
    model, data = adapted(folder, kind="linear"), rows()
    fit(model, folder, Run(tmp_path), ANSWERS_ONLY.model_copy(update={"epochs": 12}))
    probabilities = score_rows(FastDecoder(model), data, 256)
    losses = -np.log(probabilities[np.arange(len(data)), [row.comparison.label for row in data]])  # type: ignore[arg-type]
    assert losses.mean() < 0.7  # a model that knows nothing has 1.1
    trained_weights.save_adapters(model, tmp_path / "adapter", model_config(folder))
    fresh = trained_weights.load_adapters(loading.load_model(model_config(folder)), tmp_path / "adapter")
    attach_head(fresh, head_config("linear"), ANSWER_IDS, folder=tmp_path / "adapter")
    assert np.array_equal(score_rows(FastDecoder(fresh), data, 256), probabilities)


@pytest.mark.slow
@pytest.mark.numeric
def test_a_killed_training_resumes_with_its_head(folder: Path, tmp_path: Path) -> None:
    from lmsys_unsloth.train import trainer

    config = ANSWERS_ONLY.model_copy(update={"max_steps": 4})
    straight = adapted(folder, kind="lm_trained")
    fit(straight, folder, Run(tmp_path / "straight"), config)
    ordinary, count, run = trainer.AnswerTrainer.training_step, iter(range(99)), Run(tmp_path / "killed")

    def die_in_the_fourth_step(self: Any, *arguments: Any, **more: Any) -> torch.Tensor:
        if next(count) == 3:
            raise KeyboardInterrupt
        return ordinary(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.AnswerTrainer, "training_step", die_in_the_fourth_step)
        fit(adapted(folder, kind="lm_trained"), folder, run, config)
    assert run.newest_checkpoint() == 3
    resumed = adapted(folder, kind="lm_trained")
    fit(resumed, folder, run, config)
    for name, tensor in adapters(straight).items():
        assert torch.equal(adapters(resumed)[name], tensor), name


@pytest.mark.slow
def test_pairs_stay_together_when_memory_is_small(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lmsys_unsloth.train import trainer

    ordinary, seen = trainer.answer_loss, set()

    def small_memory(decoder: Any, batch: Any, config: TrainConfig) -> torch.Tensor:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.add(len(batch))
        return ordinary(decoder, batch, config)

    monkeypatch.setattr(trainer, "answer_loss", small_memory)
    config = ANSWERS_ONLY.model_copy(update={"max_steps": 2})
    fit(adapted(folder, kind="davidson"), folder, Run(tmp_path), config)
    assert seen == {2} and "same step" in caplog.text
    monkeypatch.setattr(trainer, "answer_loss", lambda *_: _out_of_memory())
    with pytest.raises(UserError, match="nothing left to give up"):
        fit(adapted(folder, kind="davidson"), folder, Run(tmp_path / "none"), config)


def _out_of_memory() -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_targets_know_whether_a_tie_is_between_two_bad_responses(folder: Path) -> None:
    from tiny import tiny_model

    tie = rows(3)[2]
    bad = dataclasses.replace(tie, comparison=dataclasses.replace(tie.comparison, both_bad=True))
    soft = dataclasses.replace(
        bad, comparison=dataclasses.replace(bad.comparison, soft_label=(0.25, 0.25, 0.5))
    )
    three, four = (AnswerHead(tiny_model("llama"), head_config(), ids) for ids in (ANSWER_IDS, FOUR))
    batch = labelled_batch([tie, bad, soft], four)
    assert batch.targets.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0.25, 0.25, 0, 0.5]]
    assert labelled_batch([tie, bad, soft], three).targets.shape == (3, len(LABELS))
