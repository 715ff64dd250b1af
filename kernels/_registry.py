"""Registry of the kernels: the declarations of each kernel file, and the search for those files.

Ahead-of-time compilation, the benchmark and docs/kernels.md read these declarations, so adding a
kernel is one file here and its test.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

POINTER = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@dataclass(frozen=True)
class Compilation:
    """One kernel with one set of compile-time constants, for `kernels/_aot.py`.

    Args:
        kernel: the jitted function.
        types: Triton's type of each runtime argument by name, such as "*fp32", "i32" or "fp32".
        constants: value of each `tl.constexpr` argument.
        launch: `num_warps` and `num_stages`.
        label: tells configurations of one kernel apart.
        quick: compiled in every CI run too; mark one of each jitted function.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    launch: Mapping[str, int] = field(default_factory=dict)
    label: str = ""
    quick: bool = False


@dataclass(frozen=True)
class Case:
    """One thing to time, forward and backward, on one device.

    Args:
        kernel: the loss by this kernel.
        reference: the same in plain PyTorch; timed eagerly and compiled.
        leaves: the inputs whose gradients are asked for.
        floor_bytes: memory traffic of forward and backward that nothing can avoid.
        floor_flops: multiply-adds times two, on the tensor cores where the type has them.
    """

    kernel: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    floor_bytes: int
    floor_flops: int = 0


@dataclass(frozen=True)
class Setting:
    """A row of the benchmark's table.

    Args:
        name: what `benchmarks/kernels.csv` calls it.
        make: builds the case from a device, a type and a memory format, on random data.
        dtypes: types to time.
        reach_ms: the time to reach on an H100 by type, where one is set.
        layouts: memory formats to time; `torch.contiguous_format` alone where there is no choice.
        graph: time by replaying a CUDA graph, for what is too small to time launch by launch.
    """

    name: str
    make: Callable[[torch.device, torch.dtype, torch.memory_format], Case]
    dtypes: Sequence[torch.dtype] = (torch.float16,)
    reach_ms: Mapping[torch.dtype, float] = field(default_factory=dict)
    layouts: Sequence[torch.memory_format] = (torch.contiguous_format,)
    graph: bool = False


@dataclass(frozen=True)
class Kernel:
    """A public kernel: what docs/kernels.md, the benchmark and the compiler check need of it.

    Args:
        name: the public function.
        formula: the loss in one or a few lines of plain text.
        traffic: what is read and written in the forward and the backward pass, in words.
        compilations: every configuration for one type of the maps.
        settings: rows of the benchmark.
    """

    name: str
    formula: str
    traffic: str
    compilations: Callable[[torch.dtype], Sequence[Compilation]]
    settings: Sequence[Setting]


def kernels() -> dict[str, Kernel]:
    """Every kernel by name: the `KERNEL` of each public module of this folder."""
    package = importlib.import_module(__package__)
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    found = [module.KERNEL for module in modules if hasattr(module, "KERNEL")]
    return {kernel.name: kernel for kernel in found}
