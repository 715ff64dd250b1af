"""The rows of the kernel benchmark tiny on a CPU, for the dry run: its figures measure nothing."""

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import gpu_subjects
import torch
from kernel_clock import Gpu
from kernel_rows import Ceilings, Row
from rich.console import Console
from torch import Tensor

from kdcompile.kernels._registry import Case, Setting
from kdcompile.kernels._registry import kernels as registered
from kdcompile.kernels._runtime import using


class Cpu(Gpu):
    """A clock of the host, no memory counter and no graphs."""

    device = "cpu"

    def name(self) -> str:
        """No card has it."""
        return "dry run"

    def quantiles_ms(self, run: Callable[[], Any]) -> Sequence[float]:
        """Of one call."""
        begun = time.perf_counter()
        run()
        return (1e3 * (time.perf_counter() - begun),) * 3

    def peak_mb(self, run: Callable[[], Any]) -> float:
        """Not counted."""
        run()
        return 0.0

    def replay(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The call itself."""
        return run

    def ceilings(self) -> Ceilings:
        """Any."""
        return Ceilings(1e9, {"float16": 1e12, "bfloat16": 1e12, "tf32": 1e12})


def setting(name: str) -> Setting:
    """The tiny subject of the smoke test as a row, with a graph so that its path is taken too."""

    def make(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Case:
        place = gpu_subjects.Place(device.type, dtype, layout, large=False)
        subject = gpu_subjects.SUBJECTS[name](place)
        leaves = [leaf.requires_grad_() for leaf in subject.leaves]

        def kernel() -> Tensor:
            with using("triton"):
                return subject.kernel(*leaves, *subject.fixed)

        return Case(kernel, lambda: subject.reference(*leaves, *subject.fixed), leaves, 1000)

    return Setting("toy", make, graph=True)


def run(names: Sequence[str], out: Path, console: Console) -> bool:
    """Time each kernel, its reference and no compiled one; whether all ran.

    PyTorch's compiler for CPUs takes longer than the whole dry run, so it hands the reference back.
    """
    found, compiler = registered(), torch.compile
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    try:
        rows = [
            Row(found[name], setting(name), torch.float32, torch.contiguous_format)
            for name in names
        ]
        benchmark = import_module("kernels")  # the script beside this one
        return bool(benchmark.run(rows, out, Cpu(), console))
    finally:
        torch.compile = compiler
