"""The LM head in float32 is computed in parts of the vocabulary, which give what a whole product gives."""

from __future__ import annotations

import pytest
import torch

from lmsys_unsloth.model.lm_head import _Float32Head


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)], ids=["rows", "rows and tokens"])
def test_parts_of_the_vocabulary_give_the_whole_product(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Float32Head, "ENTRIES", 5)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(shape, generator=generator, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(13, 4, generator=generator).to(torch.bfloat16)  # parts of 5, 5 and 3 entries
    outer = torch.randn(*shape[:-1], 13, generator=generator)
    found = _Float32Head.apply(states, weight)
    (gradient,) = torch.autograd.grad(found, states, outer)
    expected = states.detach().double() @ weight.double().T
    largest = float((states.detach().abs().double() @ weight.abs().double().T).max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8 * 2.0**-23 * largest)
    wanted = outer.double() @ weight.double()
    bound = float((outer.abs().double() @ weight.abs().double()).max())
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=2.0**-8 * bound)
