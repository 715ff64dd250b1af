"""Time untrained students on the device: random weights, side by side with the teacher.

The latency of a network does not depend on its weights' values, so that fresh ones and dummy ranges
of int8 serve. All networks of one call take turns in one run on the device that the latencies are
for; on another device nothing would be learnt of the target's model.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from torch import nn

from kdcompile.backends.candidate_runner import REFUSALS, teacher_precision
from kdcompile.calib.fp8 import insert_fp8
from kdcompile.calib.qdq import insert_qdq, weight_storage
from kdcompile.calib.table import CalibrationTable, tensor_range
from kdcompile.config.spec import Budget, Spec
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.correction import Correction
from kdcompile.models.blocks import fold
from kdcompile.onnx_graph.fp16 import to_bf16, to_fp16
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.search.device_timer import DeviceTimer, form_of, open_timer
from kdcompile.search.pareto import Point, front, keeps, likely_front, limit_ms
from kdcompile.targets import Target
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import task_of

TEACHER = "teacher"
STEADY = 0.1  # variation that is not worth a warning
NO_HALF = ("fp16-overflow", "fp16-unsupported")
# of one student; the others may still be timed
OWN = (
    *REFUSALS, *NO_HALF, "export-failed", "export-dynamic", "export-opset", "fp8-opset",
)  # fmt: skip
log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Measurement:
    """Latencies of one run.

    Args:
        precision: of the students.
        teacher_precision: fp16 next to fp16 and narrower, where the target has it.
        teacher_ms: median of alternated runs.
        ms: of each student, in the order given; None where it was refused.
        why: of each student, why it was refused.
        label: where.
        mode: of timing, such as `graph`.
        variation: interquartile range over median of the samples, of the network where it is worst.
    """

    precision: str
    teacher_precision: str
    teacher_ms: float
    ms: tuple[float | None, ...]
    why: tuple[str | None, ...]
    label: str
    mode: str
    variation: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def nearest_to_budget(
    points: Sequence[Point], count: int, budget: Budget, teacher: Point, metric: Metric
) -> list[Point]:
    """The points that are worth timing, the most telling first.

    Of the front, then of what is likely on it: those next to the latency budget, as the best that
    keeps it is among them once the latencies are corrected. Where the budget is not of time, those
    of the best quality that keep it.

    Args:
        points: of a search.
        count: at most so many.
        budget: of the spec.
        teacher: what a speed-up is against.
        metric: what quality is.
    """
    first = front(points, metric)
    others = [p for p in likely_front(points, metric) if p not in first]
    limit = limit_ms(budget, teacher)

    def rank(point: Point) -> float:
        if limit is not None:
            return abs(math.log(point.ms / limit))
        return float(metric.worse_by(point.quality, 0.0))

    kept = [
        sorted((p for p in group if limit is not None or keeps(budget, p, teacher)), key=rank)
        for group in (first, others)
    ]
    return [*kept[0], *kept[1]][:count]


def measure(
    teacher: nn.Module,
    students: Sequence[nn.Module],
    precision: str,
    spec: Spec,
    target: Target,
    board: Board | None,
    folder: Path,
) -> Measurement:
    """Build and time students and teacher in one run, at the typical shape.

    Args:
        teacher: in any state; copied.
        students: with any weights; copied, and folded as for export.
        precision: fp32, fp16, bf16, int8 or fp8.
        spec: its sections export, compile and task.
        target: what the latencies are for.
        board: where; None for ONNX Runtime in this process.
        folder: for the ONNX files; they are left there.

    Raises:
        KDError: `measure-foreign`, the device is not the target; `measure-precision`;
            `measure-none`, every student was refused; what the teacher's export and build raise.
    """
    with _timer(precision, spec, target, board) as timer:
        builder = _Builder(timer, spec, target, folder)
        own = builder.add_teacher(teacher, teacher_precision(precision))
        names = [f"student{number}" for number in range(len(students))]
        why = tuple(
            builder.refusal(name, student, precision)
            for name, student in zip(names, students, strict=True)
        )
        if None not in why:
            raise KDError(
                "measure-none",
                f"no student could be timed: {why[0] if why else 'there is none'}",
                where="[search] measure",
                fix="search without measuring: --set search.measure=0",
            )
        prepare = form_of(spec, folder).prepare
        samples, mode = timer.time(prepare.noise(spec.export.profile[1], seed=0))
    times = {name: float(np.median(taken)) for name, taken in samples.items()}
    quartiles = [np.quantile(taken, [0.25, 0.5, 0.75]) for taken in samples.values()]
    varied = max(float((high - low) / middle) for low, middle, high in quartiles)
    if varied > STEADY:
        message = (
            "search: latencies at %s vary by %.0f %% between samples; something else runs there"
        )
        log.warning(message, timer.label, 100 * varied)
    ms = tuple(times.get(name) for name in names)
    return Measurement(precision, own, times[TEACHER], ms, why, timer.label, mode, varied)


def check_timer(precision: str, spec: Spec, target: Target, board: Board | None) -> None:
    """Refuse a device where students cannot be timed, before anything is spent on them.

    Raises:
        KDError: `measure-foreign`, `measure-precision`; those of opening the device.
    """
    with _timer(precision, spec, target, board):
        pass


@contextmanager
def _timer(
    precision: str, spec: Spec, target: Target, board: Board | None
) -> Iterator[DeviceTimer]:
    """The timer, where it builds the precision."""
    if precision not in WRITERS:
        raise _unsupported(precision, "kdcompile writes no untrained network of it")
    with open_timer(target, board, spec) as timer:
        if timer.file_of(precision) not in WRITERS:
            raise _unsupported(precision, f"{timer.label} does not build it")
        yield timer


def _unsupported(precision: str, why: str) -> KDError:
    return KDError(
        "measure-precision",
        f"no student can be timed at {precision}: {why}",
        where="[quantize] precision",
        fix="--set quantize.precision=fp16 or fp32, or search without measuring: "
        "--set search.measure=0",
    )


def apply_measurement(
    points: Sequence[Point], teacher: Point, timed: Sequence[Point], found: Measurement
) -> tuple[list[Point], Point, Correction]:
    """Points and teacher with what was measured, the other points' latencies corrected by it.

    Args:
        points: of the search.
        teacher: its point.
        timed: those of the points that were measured, in their order there.
        found: the measurement.
    """
    pairs = [(p.latency, ms) for p, ms in zip(timed, found.ms, strict=True) if ms is not None]
    if found.teacher_precision == teacher.latency.precision == found.precision:
        pairs.append((teacher.latency, found.teacher_ms))
    correction = Correction.of(pairs)
    known = [(p, ms) for p, ms in zip(timed, found.ms, strict=True) if ms is not None]
    renewed = []
    for point in points:
        ms = next((ms for p, ms in known if p == point), point.measured_ms)
        renewed.append(replace(point, latency=correction.apply(point.latency), measured_ms=ms))
    return renewed, replace(teacher, measured_ms=found.teacher_ms), correction


@dataclass(frozen=True)
class _Builder:
    """What making a network ready needs in addition to the network."""

    timer: DeviceTimer
    spec: Spec
    target: Target
    folder: Path

    def add(self, name: str, module: nn.Module, precision: str) -> None:
        """Export, convert and build a copy of a network, in the form that a build deploys."""
        module = fold(copy.deepcopy(module).cpu().float().eval())
        path, output = self.folder / f"{name}.onnx", task_of(self.spec).output
        profile, target = self.spec.export.profile, self.target
        model = onnx_from_module(module, path, profile, target.max_opset, target.ir_version, output)
        kind = self.timer.file_of(precision)
        assert kind is not None, "measure asks for what the bench builds"
        if kind != "fp32":
            path = self.folder / f"{name}_{kind}.onnx"
            onnx.save(WRITERS[kind](model, target), path)
        log.info("search: building %s at %s", name, precision)
        self.timer.add(name, form_of(self.spec, self.folder).file(path), precision)

    def add_teacher(self, teacher: nn.Module, precision: str) -> str:
        """Make it ready, in fp32 where it has no narrower form; returns the precision."""
        if precision in self.target.precisions and self.timer.file_of(precision) is not None:
            try:
                self.add(TEACHER, teacher, precision)
            except KDError as error:
                if error.code not in NO_HALF:
                    raise
                log.info("search: the teacher is timed in fp32: %s", error.message)
            else:
                return precision
        self.add(TEACHER, teacher, "fp32")
        return "fp32"

    def refusal(self, name: str, module: nn.Module, precision: str) -> str | None:
        """Make a student ready, or say why it is not."""
        try:
            self.add(name, module, precision)
        except KDError as error:
            if error.code not in OWN:
                raise
            log.warning("search: %s is not timed: %s", name, error.message)
            return error.message
        return None


def _int8(model: ModelProto, target: Target) -> ModelProto:
    return insert_qdq(model, _dummy(model), weight_storage(target.software))


def _dummy(model: ModelProto) -> CalibrationTable:
    """A range of 1 for everything: kernels do not look at the scale."""
    ranges = {layer.data: tensor_range(1.0, 0.0, -1.0, 1.0) for layer in quantised_layers(model)}
    if not ranges:
        raise KDError(
            "precision-refused",
            "it has no layer to quantise",
            where="[quantize] precision",
            fix="--set quantize.precision=fp16 or fp32",
        )
    return CalibrationTable("none", "", (("none", ""),), ranges)


WRITERS: Mapping[str, Callable[[ModelProto, Target], ModelProto]] = {
    "fp32": lambda model, target: model,
    "fp16": lambda model, target: to_fp16(model),
    "bf16": lambda model, target: to_bf16(model),
    "int8": _int8,
    "fp8": lambda model, target: insert_fp8(model, _dummy(model)),
}
