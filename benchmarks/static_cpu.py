"""CPU time of a step without its launches: what Python and PyTorch do around the kernels.

    python benchmarks/static_cpu.py [--kernel NAME]... [--rounds 201]

Forward and backward of each row run with small tensors that lead to the same launches (maps of one
image and an eighth of each side, tables of a 64th of the rows), while Triton launches nothing. A
measured time of this machine's CPU, the median of many steps, in `kernels_cpu.csv`; in a CUDA graph
it does not count. A row in which PyTorch itself computes much, which the CPU does here, has none.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import csv_tables
import torch
from kernel_rows import Row, rows_of
from static_launches import recorded
from torch.overrides import TorchFunctionMode

from kdcompile.kernels import _runtime
from kdcompile.remote.agent.machine import cpu_model

OUT = Path(__file__).parent / "kernels_cpu.csv"
COLUMNS = ("kernel", "setting", "dtype", "layout", "cpu_ms", "cpu", "torch", "triton")
MOST_BYTES = 1.6e6  # that PyTorch's operators may move: 0.1 ms of a CPU


class Small(TorchFunctionMode):
    """Random tensors of a case are smaller than it asks for, in the same proportions."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """One of PyTorch's functions."""
        if func in (torch.randn, torch.rand):
            args = small(args[0] if isinstance(args[0], Sequence) else args, self.divisor)
        elif func is torch.randint and len(args) == 2:  # labels
            args = (args[0], small(args[1], self.divisor))
        return func(*args, **(kwargs or {}))


def small(shape: Sequence[int], divisor: int) -> tuple[int, ...]:
    """A map [N, C, H, W] of one image of a batch of 8, or a table, with shorter sides."""
    if len(shape) > 2:
        sides = (side // divisor if side >= 64 else side for side in shape[2:])
        return (1 if shape[0] == 8 else shape[0], shape[1], *sides)
    return (shape[0] // 64 if shape[0] >= 2048 else shape[0], *shape[1:])


@contextmanager
def without_launches() -> Iterator[None]:
    """Triton's jitted functions do nothing."""
    from triton.runtime import interpreter, jit

    classes = (jit.JITFunction, interpreter.InterpretedFunction)
    before = [cls.run for cls in classes]
    try:
        for cls in classes:
            cls.run = lambda *_, **__: None
        yield
    finally:
        for cls, own in zip(classes, before, strict=True):
            cls.run = own


def median_ms(step: Callable[[], Any], rounds: int) -> float:
    """CPU time of a call."""
    times = []
    for _ in range(rounds):
        start = time.process_time_ns()
        step()
        times.append(time.process_time_ns() - start)
    return statistics.median(times[rounds // 10 :]) / 1e6


def measured(row: Row, rounds: int) -> float | None:
    """CPU time of forward and backward in ms, or None where PyTorch's operators are much of it."""
    wanted = [(len(step.launches), step.torch_operators) for step in recorded(row)]
    for divisor in (8, 4, 2):
        with Small(divisor):
            steps, case = recorded(row), row.case("cpu")
        if wanted == [(len(step.launches), step.torch_operators) for step in steps]:
            break
    else:
        return None
    if sum(step.torch_bytes for step in steps) > MOST_BYTES:
        return None

    def step() -> None:
        loss = case.kernel()
        if case.leaves:
            torch.autograd.grad(loss, case.leaves, upstream)

    with _runtime.using("triton"), without_launches():
        upstream = torch.ones_like(case.kernel())
        return median_ms(step, rounds)


def main(arguments: Sequence[str]) -> int:
    """Measure and keep."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", default=[], help="this one alone; repeats")
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    os.environ["KDCOMPILE_TUNE"] = "0"
    torch.set_num_threads(1)
    lines: dict[tuple[str, ...], Mapping[str, Any]] = {**csv_tables.kept(options.out, COLUMNS[:4])}
    for row in rows_of(options.kernel):
        found = measured(row, options.rounds)
        text = "" if found is None else f"{found:.3f}"
        values = (*row.names, text, cpu_model("/"), torch.__version__, triton.__version__)
        lines[row.names] = dict(zip(COLUMNS, values, strict=True))
        print("  ".join(values), flush=True)
    csv_tables.write(options.out, COLUMNS, (lines[place] for place in sorted(lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
