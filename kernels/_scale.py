"""Stored gradients times their upstream scalar, read from device memory, in one launch.

PyTorch would round the scalar to the gradient's type first, and 1/N is no float16 number.
"""

from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import ceil_div
from kdcompile.kernels._ops import operator
from kdcompile.kernels._runtime import jit, tl

BLOCK, WARPS = 4096, 8


@jit
@no_type_check
def _scaled_block(values, out, scale, block, size, BLOCK: tl.constexpr):
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    value = tl.load(values + place, mask, 0.0).to(tl.float32) * scale
    tl.store(out + place, value.to(out.dtype.element_ty), mask)


@jit
@no_type_check
def _scale_kernel(
    values, out,  # of the map's type
    sums, out_sums,  # float32: gradients of parameters
    upstream, factor, size, more, BLOCK: tl.constexpr,
):  # fmt: skip
    block, blocks = tl.program_id(0), tl.cdiv(size, BLOCK)
    scale = tl.load(upstream).to(tl.float32) * factor
    if block < blocks:
        _scaled_block(values, out, scale, block, size, BLOCK)
    else:
        _scaled_block(sums, out_sums, scale, block - blocks, more, BLOCK)


def _fake(values: Tensor, sums: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(sums)


@operator(_fake)
def scaled(values: Tensor, sums: Tensor, upstream: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Both times upstream * factor, in the type and (dense) memory format of each."""
    out, out_sums = _fake(values, sums)
    _launch(values, out, sums, out_sums, upstream, factor)
    return out, out_sums


def is_last_use(saved: Tensor) -> bool:
    """Within a backward pass: whether autograd frees a saved tensor right after, so that its
    memory may be written to. Never while a graph is traced, of which that would be a side effect.
    """
    plain = type(saved) is Tensor and not saved.is_meta
    if torch.compiler.is_compiling() or not plain:
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def _launch(
    values: Tensor, out: Tensor, sums: Tensor, out_sums: Tensor, upstream: Tensor, factor: float
) -> None:
    sizes = values.numel(), sums.numel()
    blocks = sum(ceil_div(size, BLOCK) for size in sizes)
    if blocks:
        _scale_kernel[(blocks,)](
            values, out, sums, out_sums, upstream, factor, *sizes, BLOCK=BLOCK, num_warps=WARPS
        )
