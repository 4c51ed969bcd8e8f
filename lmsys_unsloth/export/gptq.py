"""``format=gptq8``: linear layers in 8-bit integers, rounded by GPTQ (Frantar et al. 2022, arXiv:2210.17323).

``weight ≈ int8 * weight_scale`` with one scale for each output channel; the rounding of each column makes up
for the errors of those before it, on the inputs that calibration rows give a layer. llmcompressor computes
it, in the layout of compressed-tensors (``pack-quantized``), which vLLM reads. Embeddings, norms and the LM
head are not quantised.

    python -m lmsys_unsloth.export.gptq FOLDER ROWS.json    (what :func:`quantise` runs)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsys_unsloth.core.errors import UserError

CALIBRATION_ROWS = 128
"""Number of calibration rows, as in the paper (section 4)."""
BITS = 8
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


def require_installed() -> None:
    """Raise an error if llmcompressor is not installed."""
    if find_spec("llmcompressor") is None:
        raise UserError(
            "format=gptq8 needs llmcompressor, which is not installed: pip install -r requirements/gptq.txt"
        )


def quantise(folder: Path, rows: Sequence[Sequence[int]]) -> None:
    """Replace the weights of a checkpoint by quantised ones.

    llmcompressor runs in a process of its own: it traces transformers' model classes, which unsloth has
    changed in this one.

    Args:
        folder: checkpoint in 16 bits.
        rows: token ids of calibration rows.

    Raises:
        UserError: llmcompressor fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        file.write_text(json.dumps([list(row) for row in rows]), encoding="utf-8")
        words = [sys.executable, "-m", "lmsys_unsloth.export.gptq", str(folder), str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(
            f"format=gptq8: llmcompressor failed ({reason}).\n  Use format=fp8 or format=merged16."
        )


def dequantise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name in the dtype of their scales, from the tensors of a checkpoint."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((SCALE, SHAPE)):
            continue
        layer = name.removesuffix(PACKED)
        if layer == name:
            plain[name] = tensor
            continue
        scale, shape = tensors[layer + SCALE], torch.Size(tensors[layer + SHAPE].tolist())
        values: Tensor = unpack_from_int32(tensor, BITS, shape).float() * scale.float()
        plain[layer + ".weight"] = values.to(scale.dtype)
    return plain


def _quantise_here(folder: Path, rows: list[list[int]]) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    weights = {"num_bits": BITS, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"linear": {"targets": ["Linear"], "weights": weights}}
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        num_calibration_samples=len(rows),
        max_seq_length=max(map(len, rows)),
        shuffle_calibration_samples=False,
    )
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    model.save_pretrained(folder, save_compressed=True)


if __name__ == "__main__":
    _quantise_here(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
