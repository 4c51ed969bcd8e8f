"""A step of the fast decoder does nothing for which the CPU would have to wait for a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from factories import head_config, train_config
from tiny import ANSWERS, ARCHITECTURES, EOS, Architecture, random_rows, tiny_model, with_adapters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lmsys_unsloth.model.answer_head import attach_head
from lmsys_unsloth.model.batch import collate
from lmsys_unsloth.model.decoder import FastDecoder
from lmsys_unsloth.train.losses import answer_loss

READ_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "repeat_interleave.Tensor")
"""Operations whose result, or its size, the CPU needs."""


class Waiting(TorchFunctionMode):
    """Records calls that copy Python numbers to a device: each would wait for all work queued before it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        indices = args[1] if name == "__getitem__" and isinstance(args[1], tuple) else args[1:2]
        if name == "tensor" or (name == "__getitem__" and any(isinstance(index, list) for index in indices)):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class ReadBack(TorchDispatchMode):
    """Records operations whose result the CPU must know before it can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        if name.startswith(READ_BACK):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("loss", ["answers", "vocabulary"])
def test_a_training_step_never_waits_for_the_device(architecture: Architecture, loss: Any) -> None:
    rows = random_rows()
    model, batch = (
        with_adapters(tiny_model(architecture)),
        collate(rows, np.eye(3)[[i % 3 for i in range(len(rows))]]),
    )
    decoder, config = FastDecoder(model), train_config(loss=loss)
    attach_head(model, head_config(), ANSWERS, eos_id=EOS)
    with Waiting() as copied, ReadBack() as read:
        answer_loss(decoder, batch, config).backward()
    assert (copied.found, read.found) == ([], [])
