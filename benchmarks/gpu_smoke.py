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
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from kernel_checks import FLOOR, loss_and_gradients, relative_rms
from tolerances import FORWARD, GRADIENT

from kdcompile.kernels._registry import kernels
from kdcompile.kernels._runtime import using

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TYPES = {"float32": torch.float32, "float16": torch.float16}
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Subject:
    """A kernel and its reference, as functions of the leaves and of the other tensors.

    size: the magnitude of the terms of the loss, as `check_kernel` has it. exact: equal bit by bit.
    """

    kernel: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    leaves: Sequence[Tensor]
    fixed: Sequence[Tensor] = field(default=())
    size: float = FLOOR
    exact: bool = False


@dataclass(frozen=True)
class Place:
    """Where a subject's tensors lie, in which type and format, and whether they are large."""

    device: str
    dtype: torch.dtype
    layout: torch.memory_format
    large: bool

    def draw(self, *shape: int) -> Tensor:
        """Random values; maps in the memory format."""
        values = torch.randn(shape, device=self.device).to(self.dtype)
        return values.contiguous(memory_format=self.layout) if len(shape) == 4 else values

    def maps(self) -> tuple[Tensor, Tensor]:
        """Two maps of one shape."""
        shape = (8, 64, 144, 192) if self.large else (2, 5, 6, 7)
        return self.draw(*shape), self.draw(*shape)


def _summed(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """A loss of several terms as their sum."""
    return lambda *tensors: torch.stack([t.sum() for t in function(*tensors)]).sum()


def _module(name: str) -> Any:
    return import_module(f"kdcompile.kernels.{name}")


def _pair(name: str, *options: Any, size: float = FLOOR) -> Callable[[Place], Subject]:
    """A loss of a student's and a teacher's maps."""

    def make(place: Place) -> Subject:
        module, (student, teacher) = _module(name), place.maps()
        kernel, reference = getattr(module, name), getattr(module, f"{name}_reference")
        return Subject(
            lambda s, t: kernel(s, t, *options), lambda s, t: reference(s, t, *options),
            [student], [teacher], size,
        )  # fmt: skip

    return make


def _kd_kl(place: Place) -> Subject:
    module, (student, teacher) = _module("kd_kl"), place.maps()
    rest = (None, 0, student.shape[1], None, False, False)
    return Subject(
        lambda s, t: module.kd_kl(s, t, TEMPERATURE),
        lambda s, t: module.kd_kl_reference(s, t, TEMPERATURE, *rest),
        [student], [teacher], TEMPERATURE**2,
    )  # fmt: skip


def _feature_mse(place: Place) -> Subject:
    module, (student, teacher) = _module("feature_mse"), place.maps()
    mask = torch.rand(student.shape[0], 1, *student.shape[2:], device=place.device)
    return Subject(
        lambda s, t, m: module.feature_mse(s, t, m, normalize=True),
        lambda s, t, m: module.feature_mse_reference(s, t, m, True),
        [student], [teacher, mask], 2 / student.shape[1],
    )  # fmt: skip


def _density_loss(place: Place) -> Subject:
    module, shape = _module("density_loss"), (4, 1, *((288, 384) if place.large else (9, 17)))
    student, target, teacher = (place.draw(*shape) for _ in range(3))
    return Subject(
        _summed(lambda s, y, t: module.density_loss(s, y, t)),
        _summed(lambda s, y, t: module.density_loss_reference(s, y, t, 8, "mean")),
        [student], [target.float(), teacher], 1.0,
    )  # fmt: skip


def _taps(place: Place) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Students, teachers, weights and biases of two taps; the second has half the side."""
    n, side = (4, (144, 192)) if place.large else (2, (8, 10))
    widths = ((16, 64), (64, 256)) if place.large else ((2, 4), (3, 8))
    sizes = [(side[0] // k, side[1] // k) for k in (1, 2)]
    students = [place.draw(n, s, *hw).relu() for (s, _), hw in zip(widths, sizes, strict=True)]
    teachers = [place.draw(n, t, *hw).relu() for (_, t), hw in zip(widths, sizes, strict=True)]
    weights = [torch.randn(t, s, device=place.device) / s**0.5 for s, t in widths]
    biases = [torch.randn(t, device=place.device) for _, t in widths]
    return students, teachers, weights, biases


def _adapter_cosine(place: Place) -> Subject:
    module, taps = _module("adapter_cosine"), _taps(place)
    student, teacher, weight, bias = (tensors[-1] for tensors in taps)
    return Subject(
        lambda s, w, b, t: module.adapter_cosine(s, t, w, b),
        lambda s, w, b, t: module.adapter_cosine_reference(s, t, w, b),
        [student, weight, bias], [teacher], 1.0,
    )  # fmt: skip


def _gram_relation(place: Place) -> Subject:
    module, (_, first, *_) = _module("gram_relation"), _taps(place)
    second = [place.draw(*t.shape) for t in first]
    return Subject(
        lambda a, b, *t: module.gram_relation([a, b], t),
        lambda a, b, *t: module.gram_relation_reference([a, b], t),
        second, first,
    )  # fmt: skip


def _skt_tap(place: Place) -> Subject:
    module, (students, teachers, weights, biases) = _module("skt_tap"), _taps(place)
    shape = students[1].shape
    densities = [place.draw(shape[0], 1, *shape[2:]) for _ in range(2)]

    def by(function: Callable[..., Any]) -> Callable[..., Tensor]:
        def loss(*tensors: Tensor) -> Tensor:
            s, w, b, (d, t1, t2, td) = tensors[:2], tensors[2:4], tensors[4:6], tensors[6:]
            intra, inter = function(s, (t1, t2), w, b, d, td)
            return intra.sum() + inter

        return loss

    return Subject(
        by(module.skt_tap), by(module.skt_tap_reference),
        [*students, *weights, *biases, densities[0]], [*teachers, densities[1]], 1.0,
    )  # fmt: skip


def _fake_quant(place: Place) -> Subject:
    module, (x, _) = _module("fake_quant"), place.maps()
    scale = torch.full((x.shape[1],), 0.02, device=place.device)
    return Subject(
        lambda v, s: module.fake_quant(v, s, axis=1),
        lambda v, s: module.fake_quant_reference(v, s, 1, 127),
        [x], [scale], exact=True,
    )  # fmt: skip


def _absmax_histogram(place: Place) -> Subject:
    module, (x, _) = _module("absmax_histogram"), place.maps()
    limit = torch.full((), 3.0, device=place.device)
    return Subject(
        lambda v, m: torch.cat([t.double().flatten() for t in module.absmax_histogram(v, m)]),
        lambda v, m: torch.cat(
            [t.double().flatten() for t in module.absmax_histogram_reference(v, m, 4096, None)]
        ),
        [], [x, limit], exact=True,
    )  # fmt: skip


def _crop_augment(place: Place) -> Subject:
    side = 256 if place.large else 12
    case = _module("crop_augment")._case(side, torch.device(place.device), place.dtype, None)
    return Subject(case.kernel, case.reference, [])


def _norm_direction(place: Place) -> Subject:
    module, (rows, width) = _module("norm_direction"), (8192, 512) if place.large else (5, 9)
    student, teacher, means = (place.draw(n, width) for n in (rows, rows, 7))
    labels = torch.randint(7, (rows,), device=place.device)
    return Subject(
        lambda s, t, m: module.norm_direction(s, t, m, labels),
        lambda s, t, m: module.norm_direction_reference(s, t, m, labels),
        [student], [teacher, means], 0.1,
    )  # fmt: skip


def _token_graph(place: Place) -> Subject:
    module, shape = _module("token_graph"), (2048, 128) if place.large else (9, 6)
    return Subject(
        lambda s, t: module.token_graph(s, t), lambda s, t: module.token_graph_reference(s, t),
        [place.draw(*shape)], [place.draw(*shape)], 20.0,
    )  # fmt: skip


SUBJECTS: dict[str, Callable[[Place], Subject]] = {  # the most important first
    "adapter_cosine": _adapter_cosine, "skt_tap": _skt_tap, "gram_relation": _gram_relation,
    "kd_kl": _kd_kl, "token_graph": _token_graph, "absmax_histogram": _absmax_histogram,
    "fake_quant": _fake_quant, "crop_augment": _crop_augment, "density_loss": _density_loss,
    "channel_kl": _pair("channel_kl", TEMPERATURE, size=TEMPERATURE**2),
    "feature_mse": _feature_mse, "attention_transfer": _pair("attention_transfer", "code"),
    "batch_relation": _pair("batch_relation", "spkd"), "norm_direction": _norm_direction,
}  # fmt: skip


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
