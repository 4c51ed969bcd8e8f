"""unsloth's CUDA kernels in Triton's interpreter, without a GPU: a process that test_kernels.py starts.

    TRITON_INTERPRET=1 UNSLOTH_ALLOW_CPU=1 python tests/model/interpreted.py llama FOLDER [4bit]

``UNSLOTH_ALLOW_CPU`` is unsloth's own switch for tests: it takes its CUDA branches. Prints as JSON how
often each kernel was called, and how far the fast decoder with kernels is from plain PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

GPU = SimpleNamespace(name="none", total_memory=2**34, major=9, minor=0, multi_processor_count=1)


def main(architecture: Any, folder: Path, in_4bit: bool) -> None:
    from lmsys_unsloth.model import loading, parity, trained_weights
    from lmsys_unsloth.model.batch import collate
    from lmsys_unsloth.model.decoder import FastDecoder, causal_lm
    from lmsys_unsloth.model.layers.kernels import unsloths_kernels
    from lmsys_unsloth.model.unsloth_import import import_unsloth

    unsloth = import_unsloth()
    without_gpu(unsloth)
    from gpu.test_fast_path import LORA, random_model
    from training_cases import TRAIN

    config = random_model(architecture, folder, width=64, load_in_4bit=False)
    model = trained_weights.make_trainable(loading.load_model(config, TRAIN), LORA, TRAIN, seed=0)
    if in_4bit:
        quantise(model)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    random = np.random.default_rng(0)
    calls: dict[str, int] = {}
    batch = collate([random.integers(3, 30_000, n) for n in (12, 1, 7, 24)], np.eye(3)[[0, 1, 2, 0]])
    kernels = FastDecoder(model, counted(unsloths_kernels(), calls))
    distances = {}
    for checkpointed in (0, 2):
        kernels.checkpointed = checkpointed
        distances[checkpointed] = parity.parity_distances(kernels, FastDecoder(model), batch, gradients=True)
    layer: Any = causal_lm(model).model.layers[0]
    projection = layer.self_attn.q_proj.base_layer.weight
    found = {"calls": calls, "distances": distances, "weights": str(projection.dtype)}
    print(json.dumps(found | {"fp8": rounded_to_fp8()}))


def rounded_to_fp8() -> dict[str, float]:
    """How far the kernel's results are from plain PyTorch's, in units of the latter."""
    from lmsys_unsloth.model.layers import fp8, fp8_kernel

    x = (torch.randn(5, 200) * torch.tensor([1e-4, 1.0, 0.0, 10.0, 1.0])[:, None]).half()
    values, scales = fp8_kernel.quantize_rows(x.T.contiguous().T, fp8.E4M3, fp8.LARGEST, fp8.SMALLEST_SCALE)
    expected = fp8.quantize_rows(x)
    apart = (values.float() - expected.values.float()).abs() / expected.values.float().abs().clamp(min=0.01)
    return {"scales": float((scales / expected.scales - 1).abs().max()), "values": float(apart.max())}


def counted(kernels: Any, calls: dict[str, int]) -> Any:
    """The kernels, with the number of their calls added to ``calls``."""

    def counting(name: str, kernel: Any) -> Any:
        calls[name] = 0

        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return kernel(*arguments, **named)

        return call

    gated = {
        name: (counting(f"{name} forward", forward), counting(f"{name} backward", backward))
        for name, (forward, backward) in kernels.gated.items()
    }
    single = {name: counting(name, getattr(kernels, name)) for name in ("rms_norm", "rope", "dequantize")}
    return dataclasses.replace(kernels, gated=gated, **single)


def quantise(model: torch.nn.Module) -> None:
    """Quantise the weights under the adapters; with its switch for tests unsloth loads no 4-bit weights."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for module in model.modules():
        if hasattr(module, "lora_A"):
            base = module.base_layer
            made = Linear4bit(
                base.in_features, base.out_features, bias=False, compute_dtype=torch.float16, quant_type="nf4"
            )
            made.weight = Params4bit(base.weight.data, requires_grad=False, quant_type="nf4").to("cpu")
            module.base_layer = made


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


def without_gpu(unsloth: Any) -> None:
    """Replace unsloth's queries of the device, and the tanh of a CUDA library."""
    import unsloth.kernels.geglu
    import unsloth.models.gemma
    import unsloth.models.llama

    torch.cuda.get_device_properties = lambda *_: GPU
    for module in (unsloth.models.llama, unsloth.models.gemma):
        module.get_current_device = lambda: "cpu"
    loader = unsloth.FastLanguageModel
    loader.from_pretrained = functools.partial(loader.from_pretrained, device_map={"": "cpu"})

    unsloth.kernels.geglu.triton_tanh = tanh
    unsloth.kernels.utils.fast_dequantize = dequantize


def dequantize(weight: Any, quant_state: Any = None, *_: Any, **__: Any) -> torch.Tensor:
    """bitsandbytes' dequantisation on the CPU, with the calling convention of unsloth's on CUDA."""
    import bitsandbytes

    if quant_state is None:
        return weight
    transposed = weight.shape[0] == 1
    values = bitsandbytes.functional.dequantize_4bit(weight.t() if transposed else weight, quant_state)
    return values.t() if transposed else values


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), in_4bit=sys.argv[3:] == ["4bit"])
