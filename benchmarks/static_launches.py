"""The launches of one step of a kernel at its full size, recorded without a GPU and without memory.

Tensors are allocated and never written (untouched pages take no memory), PyTorch's own operators
compute nothing, and a kernel's launch is kept instead of made. What PyTorch itself would launch is
counted: one kernel an operator that is not a view or an allocation, and the bytes of its tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from kernel_rows import Row
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kdcompile.kernels import _runtime

ALLOCATIONS = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
RESERVED = ("grid", "warmup")


@dataclass(frozen=True)
class Launch:
    """One launch: the jitted function, its grid and every argument by name."""

    function: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    options: Mapping[str, int]

    @property
    def programs(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def warps(self) -> int:
        """Warps a block; 4 is Triton's default."""
        return int(self.options.get("num_warps", 4))


@dataclass
class Step:
    """What one pass launches, in order."""

    launches: list[Launch] = field(default_factory=list)
    torch_operators: list[str] = field(default_factory=list)
    torch_bytes: float = 0.0  # that these read and write
    kept: list[Any] = field(default_factory=list)  # a kernel may hold the address of any tensor


class Unwritten(TorchDispatchMode):
    """PyTorch's operators give outputs of the right shape and compute nothing."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "kdcompile":  # ours: what it does inside is recorded too
            with self:
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                return func.redispatch(keys, *args, **kwargs)
        if func is torch.ops.aten.contiguous.default and not args[0].is_contiguous(**kwargs):
            with self:  # counts as a view, and is a copy
                return args[0].clone(**{"memory_format": torch.contiguous_format, **kwargs})
        if func.namespace != "aten" or func.is_view:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ALLOCATIONS:
            self.step.kept.append(func(*args, **kwargs))
            return _safe(self.step.kept[-1])
        self.step.torch_operators.append(name)
        if func._schema.is_mutable:
            self.step.torch_bytes += _bytes(args)
            return args[0]
        meta_args, meta_kwargs = tree_map(_on_meta, (tuple(args), dict(kwargs)))
        self.step.kept.append(tree_map(_unwritten, func(*meta_args, **meta_kwargs)))
        self.step.torch_bytes += _bytes((args, self.step.kept[-1]))
        return self.step.kept[-1]


def _bytes(values: Any) -> int:
    """Of the tensors among these; what is expanded lies in memory once."""
    found = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
    return sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in found)


def _safe(tensor: Tensor) -> Tensor:
    """Integers as zeros: what lay in that memory before would be taken for an index."""
    return tensor if tensor.is_floating_point() else tensor.zero_()


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _unwritten(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _safe(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype))
    return value


@contextmanager
def launches_to(keep: Callable[[Launch], None]) -> Iterator[None]:
    """Give each launch to `keep` instead of making it."""
    from triton.runtime import interpreter, jit

    classes = (jit.JITFunction, interpreter.InterpretedFunction)
    before = [cls.run for cls in classes]

    def run(self: Any, *args: Any, grid: Any, **kwargs: Any) -> None:
        names = self.arg_names
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        arguments = {name: given[name] for name in names if name in given}
        options = {k: v for k, v in given.items() if k not in names and k not in RESERVED}
        size = grid(arguments) if callable(grid) else grid
        keep(Launch(self, (*size, 1, 1)[:3], arguments, options))

    try:
        for cls in classes:
            cls.run = run
        yield
    finally:
        for cls, own in zip(classes, before, strict=True):
            cls.run = own


def recorded(row: Row) -> tuple[Step, Step]:
    """What the forward pass and the backward pass of a row launch."""
    forward, backward = Step(), Step()
    with Unwritten(forward):
        case = row.case("cpu")
    forward.torch_operators.clear()
    forward.torch_bytes = 0.0
    with _runtime.using("triton"), launches_to(forward.launches.append), Unwritten(forward):
        loss = case.kernel()
    if case.leaves:
        upstream = torch.ones_like(loss.detach())
        with _runtime.using("triton"), launches_to(backward.launches.append), Unwritten(backward):
            torch.autograd.grad(loss, list(case.leaves), upstream)
    return forward, backward
