"""Each kernel beside its reference, eager and compiled, and beside the floor: needs a CUDA GPU.

    python benchmarks/kernels.py [--kernel NAME]... [--no-gate] [--list] [--out FILE] [--ahead N]

First the kernels' tests run on the GPU: nothing is timed on red. Then each row of the table is
forward and backward, L2 cache cleared before each call, tuned and compiled before the clock starts.
Rows are kept as soon as they are measured, and those that the file has of this card and commit are
left out, so a run that is cut short goes on. `--ahead N`: the references are compiled beforehand in
N processes, for which the card needs the memory of N rows.
Exit code 1: the gate is red or a kernel did not run. 4: no GPU, or no Triton for it.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kernel_clock import Gpu, precision
from kernel_rows import Ceilings, Row, Timing, append, commit, measured, records, rows_of, table
from rich.console import Console
from torch import Tensor

from kdcompile.kernels import _runtime
from kdcompile.kernels._registry import Case

ROOT = Path(__file__).parents[1]
ROUNDS = 3
WRONG = 0.05  # relative RMS: more than rounding in any type
Run = Callable[[], Any]


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case, and the float32 precision under which it may do so."""

    name: str
    function: Run
    precision: str
    replayed: bool  # as a CUDA graph


def implementations(row: Row, case: Case) -> list[Implementation]:
    """What is timed for a row.

    With 16-bit maps the reference may use TF32: it computes in float32, which costs it nothing of
    the maps' accuracy and would slow its products down.
    """
    graph, half = row.setting.graph, row.dtype != torch.float32
    loose = "high" if half else "highest"
    compiled = torch.compile(case.reference, dynamic=False)
    found = [
        Implementation("eager", case.reference, loose, graph),  # the others are compared with it
        Implementation("torch.compile", compiled, loose, graph),
        Implementation("kernel", case.kernel, "highest", graph),
    ]
    if case.floor_flops and not half:
        found.append(Implementation("kernel (tf32)", case.kernel, "high", graph))
    if graph:
        found.append(Implementation("kernel (eager call)", case.kernel, "highest", False))
    return found


def step(function: Run, leaves: Sequence[Tensor], scale: float = 1.5) -> Run:
    """Forward and backward under a given upstream gradient; forward alone without leaves."""
    first = function()
    if not leaves:
        return function
    upstream = torch.full_like(first.detach(), scale)
    del first
    return lambda: torch.autograd.grad(function(), list(leaves), upstream)


def loss_scale(case: Case) -> float:
    """The upstream gradient, large in float16 as in training: a mean's gradient is nothing there.

    As large as the reference's gradients bear; 1.5 where that cannot be seen.
    """
    with suppress(RuntimeError):
        if case.leaves and case.leaves[0].dtype == torch.float16:
            for scale in (65536.0, 256.0):
                found = step(case.reference, case.leaves, scale)()
                if all(bool(torch.isfinite(grad).all()) for grad in found):
                    return scale
    return 1.5


def difference(found: Any, truth: Any) -> float:
    """Relative RMS of what two implementations give, of the tensor where they differ most."""
    pairs = zip(*((r,) if isinstance(r, Tensor) else r for r in (found, truth)), strict=True)
    gaps = [((a.float() - b.float()).norm(), b.float().norm()) for a, b in pairs]
    return float(torch.stack([gap / size.clamp_min(1e-12) for gap, size in gaps]).max())


def measure(row: Row, case: Case, ceilings: Ceilings, gpu: Gpu) -> list[Timing]:
    """Warm every implementation up, compare them, then time them in turns."""
    ready: list[tuple[Implementation, Run, Timing]] = []
    failed: list[Timing] = []
    truth, scale = None, loss_scale(case)
    for impl in implementations(row, case):
        try:
            run, result = _warm(row, impl, case, scale)
            truth = result if truth is None and impl.name == "eager" else truth
            differs = None if truth is None else difference(result, truth)
            del result
            if impl.name.startswith("kernel") and not (differs or 0.0) <= WRONG:
                raise ValueError(f"differs from the reference by {differs:.2g}")
            floor = ceilings.floor(case, row.names[2], impl.precision)
            with precision(impl.precision):
                peak = gpu.peak_mb(run)
                run = gpu.replay(run) if impl.replayed else run
            ready.append((impl, run, Timing(impl.name, (), floor, peak, differs=differs)))
        except Exception as error:  # a failure is a row of the table, whatever it is
            lines = str(error).strip().splitlines() or [""]
            failed.append(Timing(impl.name, problem=f"{type(error).__name__}: {lines[0][:150]}"))
    del truth
    samples: dict[str, list[Sequence[float]]] = {impl.name: [] for impl, _, _ in ready}
    for _ in range(ROUNDS):
        for impl, run, _ in ready:
            with precision(impl.precision):
                samples[impl.name].append(gpu.quantiles_ms(run))
    found = []
    for impl, _, timing in ready:
        quantiles = tuple(statistics.median(q) for q in zip(*samples[impl.name], strict=True))
        medians = [q[1] for q in samples[impl.name]]
        spread = (max(medians) - min(medians)) / quantiles[1]
        found.append(replace(timing, quantiles_ms=quantiles, spread=spread))
    return found + failed


def _warm(row: Row, impl: Implementation, case: Case, scale: float) -> tuple[Run, Any]:
    """What to time, tuned and compiled, and what it gives."""
    with precision(impl.precision):
        run = step(impl.function, case.leaves, scale)
        for _ in range(2):
            run()
        result = run()
    how = _runtime.ran().get(row.kernel.name, "it did not say")
    if impl.name.startswith("kernel") and how != "triton":
        raise RuntimeError(f"no kernel ran: {how}")
    return run, result


def gate(names: Sequence[str], root: Path = ROOT) -> int:
    """The exit code of the kernels' own tests, on the GPU rather than in the interpreter.

    Untuned: choosing among configurations for each of the many small shapes would take an hour.
    """
    files = [root / "tests" / "kernels" / f"test_{name}.py" for name in names]
    if missing := [str(file) for file in files if not file.is_file()]:
        print(f"no test, no timing: {', '.join(missing)} is missing")
        return 1
    workers = ["-n", str(max(1, (os.cpu_count() or 1) - 2))] if find_spec("xdist") else []
    # -P: the working folder has a kdcompile without kernels, which must not come first
    command = [sys.executable, "-P", "-m", "pytest", "-q", *workers, *map(str, files)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "KDCOMPILE_TUNE": "0"}
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode


def unable() -> str | None:
    """Why nothing can be timed here, and what is needed."""
    if not torch.cuda.is_available():
        return "no CUDA GPU: kernels are timed on one, with PyTorch built for CUDA and Triton"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: unset it, the interpreter is no GPU"
    if os.environ.get("KDCOMPILE_TUNE") == "0":
        return "KDCOMPILE_TUNE is 0: unset it, the default configuration is not what is timed"
    return _runtime.triton_problem()


def run(rows: Sequence[Row], out: Path, gpu: Gpu, console: Console, ahead: int = 0) -> bool:
    """Measure, print and keep what the file has not yet; whether every kernel ran."""
    card = gpu.name()
    provenance = {
        "card": card, "torch": torch.__version__, "triton": _runtime.triton.__version__,
        "commit": commit(ROOT, out),
    }  # fmt: skip
    append(out, [])
    known = measured(out, provenance)
    rows = [row for row in rows if row.names not in known]
    if ahead > 1 and rows:
        with ProcessPoolExecutor(ahead, mp_context=get_context("spawn")) as pool:
            list(pool.map(compiled_ahead, [row.names for row in rows]))
    ceilings = gpu.ceilings()
    flops = ", ".join(f"{n} {rate / 1e12:.0f}" for n, rate in ceilings.flops_per_s.items())
    console.print(f"{card}: copy {ceilings.bytes_per_s / 1e9:.0f} GB/s; TFLOP/s {flops}")
    fine = True
    for name in dict.fromkeys(row.kernel.name for row in rows):
        body = []
        for row in (row for row in rows if row.kernel.name == name):
            timings = _one(row, ceilings, gpu)
            append(out, records(row, timings, provenance))
            body.append((row, timings))
            fine &= not any(t.problem for t in timings if t.impl.startswith("kernel"))
        console.print(table(name, body, card))
    return fine


def compiled_ahead(names: Sequence[str]) -> None:
    """Call the compiled reference of a row once, so that PyTorch's cache on the disk has it."""
    (row,) = (r for r in rows_of([names[0]]) if r.names == tuple(names))
    with suppress(Exception):  # the row itself tells what fails
        case = row.case("cuda")
        found = implementations(row, case)[1]
        with precision(found.precision):
            step(found.function, case.leaves)()


def _one(row: Row, ceilings: Ceilings, gpu: Gpu) -> list[Timing]:
    """Measure a row on a clean slate; its tensors are gone afterwards."""
    torch._dynamo.reset()  # else the ninth row of a kernel would silently be eager
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    return measure(row, row.case(gpu.device), ceilings, gpu)


def main(arguments: Sequence[str]) -> int:
    """Gate, measure, keep; the exit code is in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", default=[], help="this one alone; repeats")
    parser.add_argument("--no-gate", action="store_true", help="do not run the tests first")
    parser.add_argument("--list", action="store_true", help="print the rows; needs no GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "kernels.csv")
    parser.add_argument("--ahead", type=int, default=0, help="processes that compile references")
    parser.add_argument("--toy", action="store_true", help="a dry run, tiny, in the interpreter")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 180)
    if options.toy:
        import gpu_toy_rows

        return 0 if gpu_toy_rows.run(options.kernel, options.out, console) else 1
    rows = rows_of(options.kernel)
    if options.list:
        for row in rows:
            case = row.case("meta")
            sizes = f"{case.floor_bytes / 1e6:8.1f} MB  {case.floor_flops / 1e9:8.1f} GFLOP"
            print(f"{sizes}  {'  '.join(row.names)}")
        return 0
    if reason := unable():
        print(reason, file=sys.stderr)
        return 4
    if not options.no_gate and gate(sorted({row.kernel.name for row in rows})):
        print("the gate is red: nothing is timed", file=sys.stderr)
        return 1
    return 0 if run(rows, options.out, Gpu(), console, options.ahead) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
