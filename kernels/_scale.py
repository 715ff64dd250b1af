"""A stored gradient times its upstream scalar, read from device memory.

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
def _scale_kernel(values, upstream, out, factor, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    scale = tl.load(upstream).to(tl.float32) * factor
    value = tl.load(values + place, mask, 0.0).to(tl.float32) * scale
    tl.store(out + place, value.to(out.dtype.element_ty), mask)


@operator(lambda values, *_: torch.empty_like(values))
def scaled(values: Tensor, upstream: Tensor, factor: float) -> Tensor:
    """values * upstream * factor in the type and (dense) memory format of `values`."""
    out = torch.empty_like(values)
    _launch(values, upstream, factor, out)
    return out


def is_last_use(saved: Tensor) -> bool:
    """Within a backward pass: whether autograd frees a saved tensor right after, so that its
    memory may be written to. Never while a graph is traced, of which that would be a side effect.
    """
    plain = type(saved) is Tensor and not saved.is_meta
    if torch.compiler.is_compiling() or not plain:
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def consume(values: Tensor, upstream: Tensor, factor: float) -> Tensor:
    """The same within a backward pass, in place where nobody needs `values` any more."""
    if not is_last_use(values):
        return scaled(values, upstream, factor)  # type: ignore[no-any-return]
    _launch(values, upstream, factor, values)
    return values


def _launch(values: Tensor, upstream: Tensor, factor: float, out: Tensor) -> None:
    size = values.numel()
    if size:
        grid: Any = (ceil_div(size, BLOCK),)
        _scale_kernel[grid](values, upstream, out, factor, size, BLOCK=BLOCK, num_warps=WARPS)
