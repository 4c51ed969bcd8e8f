"""A Triton kernel that rounds the rows of a matrix to 8-bit floating point; imported on a GPU only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmsys_unsloth.model.layers.fp8 import E4M3, LARGEST, SMALLEST_SCALE

_LARGEST, _SMALLEST_SCALE = tl.constexpr(LARGEST), tl.constexpr(SMALLEST_SCALE)


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_row(x, values, scales, stride, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < columns
    wide = tl.load(x + row * stride + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide)) / _LARGEST, _SMALLEST_SCALE)
    rounded = tl.clamp(wide / scale, -_LARGEST, _LARGEST).to(values.dtype.element_ty)
    tl.store(values + row * columns + offsets, rounded, mask=inside)
    tl.store(scales + row, scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E4M3 values ``[rows, columns]`` and float32 scales ``[rows, 1]`` of ``x`` on a GPU.

    A program reads one row, once. The numbers of a row must be neighbours.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, columns = x.shape
    values = torch.empty(rows, columns, dtype=E4M3, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(columns)
    if rows:
        _quantize_row[(rows,)](
            x, values, scales, x.stride(0), columns, BLOCK=block, num_warps=min(16, max(1, block // 512))
        )
    return values, scales
