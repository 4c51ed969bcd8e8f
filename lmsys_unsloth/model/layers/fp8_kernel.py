"""A Triton kernel that rounds the rows of a matrix to 8-bit floating point; imported on a GPU only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_row(  # type: ignore[no-untyped-def]
    x, values, scales, stride, columns, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < columns
    wide = tl.load(x + row * stride + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide)) / LARGEST, SMALLEST)
    rounded = tl.clamp(wide / scale, -LARGEST, LARGEST).to(values.dtype.element_ty)
    tl.store(values + row * columns + offsets, rounded, mask=inside)
    tl.store(scales + row, scale)


def quantize_rows(
    x: Tensor, dtype: torch.dtype, largest: float, smallest_scale: float
) -> tuple[Tensor, Tensor]:
    """Return values ``[rows, columns]`` in ``dtype`` and float32 scales ``[rows, 1]`` of ``x`` on a GPU.

    The largest number of a row becomes ``largest``. A program reads one row, once.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, columns = x.shape
    values = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(columns)
    if rows:
        _quantize_row[(rows,)](
            x, values, scales, x.stride(0), columns, largest, smallest_scale, BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return values, scales
