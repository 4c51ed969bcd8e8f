"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, whatever ``-m`` says."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real preference data and tokenizers that lies beside the checkout.

    The project does not contain it: CI always has it, so there its absence is an error.
    """
    folder = Path(os.environ.get("LMSYS_UNSLOTH_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        message = (
            f"no real data at {folder} (set LMSYS_UNSLOTH_SHARED to a folder with data/ and tokenizers/)"
        )
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, ``train.csv`` with 30 rows, and one trained run for each of three folds."""
    from tiny import save_tiny_llama  # slow imports, which most tests do not need
    from trained_runs import FOLDS, ROWS, settings, train

    from lmsys_unsloth.config.run_directory import Run
    from lmsys_unsloth.simulate import main as simulate

    path = tmp_path_factory.mktemp("evaluation")
    save_tiny_llama(path / "model")
    assert simulate([f"rows={ROWS}", "length=short", f"out={path / 'train.csv'}"]) == 0
    for fold in range(FOLDS):
        train(settings(path, f"fold={fold}"), Run(path / f"fold{fold}"))
    return path


@pytest.fixture
def new_rows(tmp_path: Path) -> Path:
    """A file of six rows that no run has seen."""
    from lmsys_unsloth.simulate import main as simulate

    assert simulate(["rows=6", "seed=3", "length=short", f"out={tmp_path / 'new.csv'}"]) == 0
    return tmp_path / "new.csv"


@pytest.fixture
def flex_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """FlexAttention traced as for CUDA, in PyTorch's reference arithmetic; the inputs of each traced graph.

    On a CPU PyTorch refuses it gradients, and turns no variable sizes into C++.
    """
    import torch
    import torch.nn.attention.flex_attention as module
    from torch._dynamo.backends.debugging import aot_eager

    from lmsys_unsloth.model import attention

    traced: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        traced.append(inputs)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    function = attention.compile_once(module.flex_attention, backend=keep)
    monkeypatch.setattr(module, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(attention, "_flex_attention", lambda device: function)
    return traced
