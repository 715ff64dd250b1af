"""Every public kernel, tiny and large, in both memory formats, against float64, and twice.

    python benchmarks/gpu_smoke.py --out FILE [--device cpu] [--size tiny] [--kernel NAME ...]

Needs PyTorch, Triton and NumPy alone. A line of JSON a check: the errors of the loss and of its
gradients by the tolerances of the tests, and whether a second call gave the same bits. What a
kernel defines bit by bit is compared with its reference in its own type. Exit code 1: a check
failed.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from gpu_subjects import SUBJECTS, Place
from kernel_checks import FLOOR, loss_and_gradients, relative_rms
from tolerances import FORWARD, GRADIENT

from kdcompile.kernels._registry import kernels
from kdcompile.kernels._runtime import using

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TYPES = {"float32": torch.float32, "float16": torch.float16}


def check(name: str, place: Place) -> dict[str, Any]:
    """Run one subject twice and compare."""
    torch.manual_seed(0)
    subject = SUBJECTS[name](place)
    with using("triton"):
        first, second = (_run(subject.kernel, subject.leaves, subject.fixed) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    wide = (lambda t: t) if subject.exact or not subject.leaves else _wide
    with using("reference"):
        leaves, fixed = ([wide(t) for t in ts] for ts in (subject.leaves, subject.fixed))
        truth = _run(subject.reference, leaves, fixed)
    if subject.exact:
        equal = all(torch.equal(a, b) for a, b in zip(first, truth, strict=True))
        return {"same": same, "equal": equal, "ok": same and equal}
    loss = relative_rms(first[0], truth[0], subject.size)
    errors = [
        relative_rms(own, true, max(FLOOR, subject.size / max(leaf.numel(), 1)))
        for leaf, own, true in zip(subject.leaves, first[1:], truth[1:], strict=True)
    ]
    kind = place.dtype  # what has no gradient is rounded like one: crops
    limit = FORWARD[kind] if subject.leaves else GRADIENT[kind]
    fine = loss <= limit and all(e <= GRADIENT[kind] for e in errors)
    return {"same": same, "loss": loss, "gradients": errors, "ok": same and fine}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _run(
    loss: Callable[..., Tensor], leaves: Sequence[Tensor], fixed: Sequence[Tensor]
) -> list[Tensor]:
    """The loss and its gradients."""
    if not leaves:
        return [loss(*fixed)]
    value, gradients = loss_and_gradients(lambda *own: loss(*own, *fixed), leaves)
    return [value, *gradients]


def told(task: tuple[str, str, str, str, bool]) -> dict[str, Any]:
    """The line of a check; a failure is a line too."""
    name, device, dtype, layout, large = task
    begun = time.perf_counter()
    row = {"kernel": name, "size": "large" if large else "tiny", "dtype": dtype, "layout": layout}
    try:
        found = check(name, Place(device, TYPES[dtype], LAYOUTS[layout], large))
    except Exception as error:  # one that does not compile must not hide the others
        found = {"ok": False, "problem": f"{type(error).__name__}: {str(error)[:300]}"}
    return {**row, **found, "seconds": round(time.perf_counter() - begun, 3)}


def main(arguments: Sequence[str]) -> int:
    """Check, print and keep; the exit code is in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", nargs="+", choices=("tiny", "large"), default=["tiny", "large"])
    parser.add_argument("--kernel", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    options = parser.parse_args(arguments)
    if unknown := set(kernels()) - set(SUBJECTS):
        raise SystemExit(f"no check of {sorted(unknown)}")
    tasks = [
        (name, options.device, dtype, layout, size == "large")
        for name in options.kernel for size in options.size for dtype in TYPES for layout in LAYOUTS
    ]  # fmt: skip
    fine = True
    with options.out.open("a") as file:
        for row in _all(tasks, min(options.jobs, len(tasks))):
            file.write(json.dumps(row) + "\n")
            file.flush()
            fine &= row["ok"]
            if not row["ok"]:
                print(json.dumps(row), flush=True)
    print(f"{len(tasks)} checks: {'all' if fine else 'not all'} within their tolerance, bits equal")
    return 0 if fine else 1


def _all(tasks: Sequence[Any], jobs: int) -> Any:
    if jobs == 1:
        return map(told, tasks)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context).map(told, tasks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
