"""Training other weights than plain LoRA: it learns, reloads exactly and starts from earlier runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import config, lora_config, model_config
from tiny import save_tiny_llama
from training_cases import LORA, TRAIN, fit, rows, with_head

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.scoring import score_rows
from lmsys_unsloth.model import loading, memory, trained_weights
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.model.trained_weights import trained_parameters

FULL = lora_config(kind="full", first_layer=1, target_modules=["q_proj", "v_proj", "down_proj"])

pytestmark = pytest.mark.slow  # each trains a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def trainable(folder: Path, lora: Any = FULL, **changes: Any) -> Any:
    model = loading.load_model(model_config(folder, **changes))
    return with_head(trained_weights.make_trainable(model, lora, TRAIN, seed=1))


def scores(model: Any) -> np.ndarray:
    return score_rows(FastDecoder(model), rows(), 256)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_learns_and_reloads_exactly(folder: Path, tmp_path: Path, dtype: str) -> None:
    model = trainable(folder, dtype=dtype)
    weights = trained_parameters(model)
    assert all(".layers.1." in name and p.dtype == torch.float32 for name, p in weights.items())
    assert len(weights) == 3
    before = scores(model)
    fit(model, folder, Run(tmp_path), TRAIN.model_copy(update={"epochs": 8, "learning_rate": 1e-3}))
    labels = [row.comparison.label for row in rows()]
    after = scores(model)
    losses = [-np.log(p[np.arange(len(p)), labels]).mean() for p in (before, after)]  # type: ignore[arg-type]
    assert losses[1] < losses[0] - 0.2
    trained_weights.save_adapters(model, tmp_path / "adapter", model_config(folder))
    base = loading.load_model(model_config(folder, dtype=dtype))
    reloaded = with_head(trained_weights.load_adapters(base, tmp_path / "adapter"))
    assert np.array_equal(scores(reloaded), after)
    assert trained_weights.remove_adapters(reloaded) is None  # its own weights have changed


@pytest.mark.parametrize("lora", [FULL, LORA], ids=["full", "lora"])
def test_a_run_starts_from_the_weights_of_an_earlier_one(folder: Path, tmp_path: Path, lora: Any) -> None:
    first = trainable(folder, lora)
    with torch.no_grad():
        for weight in trained_parameters(first).values():
            weight.add_(0.01)
    trained_weights.save_adapters(first, tmp_path / "adapter", model_config(folder))
    second = trainable(folder, lora)
    assert not np.array_equal(scores(second), scores(first))
    trained_weights.continue_from(second, tmp_path / "adapter")
    assert np.array_equal(scores(second), scores(first))
    other = trainable(folder, lora.model_copy(update={"target_modules": ["o_proj"]}))
    with pytest.raises(UserError, match=r"does not fit the model, .* tensors differ in name or shape"):
        trained_weights.continue_from(other, tmp_path / "adapter")


def test_four_bit_weights_are_refused() -> None:
    assert config("lora=none").model.load_in_4bit is False
    with pytest.raises(UserError, match="4-bit weights can't be trained themselves"):
        config("lora=none", "model.load_in_4bit=true")


def test_the_memory_of_full_fine_tuning_is_forecast(folder: Path) -> None:
    """A float32 copy, its gradient and AdamW's two moments for each trained weight."""
    settings = json.loads((folder / "config.json").read_text())
    model, lora = model_config(folder), FULL.model_copy(update={"first_layer": 0})
    sizes = [
        memory.forecast_memory(settings, model, each, TRAIN, tokens=64, row_length=64)[0]
        for each in (lora, lora.model_copy(update={"kind": "lora"}))
    ]
    trained = sum(p.numel() for p in trained_parameters(trainable(folder, lora)).values())
    assert sizes[0] - sizes[1] == 4 * 4 * trained


def test_dora_trains_reloads_and_is_continued(folder: Path, tmp_path: Path) -> None:
    dora = LORA.model_copy(update={"use_dora": True})
    model = trainable(folder, dora)
    assert any("lora_magnitude_vector" in name for name in trained_parameters(model))
    before = {name: weight.detach().clone() for name, weight in trained_parameters(model).items()}
    fit(model, folder, Run(tmp_path), TRAIN)
    assert all(not torch.equal(weight, before[name]) for name, weight in trained_parameters(model).items())
    trained_weights.save_adapters(model, tmp_path / "adapter", model_config(folder))
    base = loading.load_model(model_config(folder))
    reloaded = with_head(trained_weights.load_adapters(base, tmp_path / "adapter"))
    assert np.array_equal(scores(reloaded), scores(model))
    other = trainable(folder, dora)
    trained_weights.continue_from(other, tmp_path / "adapter")
    assert np.array_equal(scores(other), scores(model))
