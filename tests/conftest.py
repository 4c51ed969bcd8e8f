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
