"""Measurements of a build, which every gate decides from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.report import Evidence, Measurement
from kdcompile.latency.energy_memory import Resources
from kdcompile.latency.frame_times import FrameTimes, PredictedFrame
from kdcompile.remote.usage import Absent
from kdcompile.stats.latency_interval import PairedTimes
from kdcompile.targets import Target
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task

Floats = NDArray[np.float64]


MODES = {  # how a latency at a board was measured, in a report's words
    "graph": "CUDA graph, inputs on the device",
    "device": "inputs on the device",
    "end_to_end": "end to end, copies from and to pinned memory",
}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Predictions for every judged test image; arrays are float64 [N] in the order of `names`.

    Those of a task of records are its rows, [N, 1 + W]; [N] where a board sent the errors alone.

    Args:
        names: the photos.
        true: the annotated values.
        teacher: the teacher, fp32.
        student_fp32: the trained student.
        student_int8: the calibrated student.
        student: the deployed student, at the chosen precision.
        available: images in the whole test split; more than N when `data.max_test` cut it.
        previous: the network of an earlier bundle, where one is judged against.
        maps: errors by the task's `map_metrics`, [N, M], by network under the names above; a
            network of which predictions alone are known is not in it.
        taught: bool [N], the images of the classes that the teacher has; None where it has all.
    """

    names: tuple[str, ...]
    true: Floats
    teacher: Floats
    student_fp32: Floats
    student_int8: Floats
    student: Floats
    available: int
    previous: Floats | None = None
    maps: Mapping[str, Floats] = field(default_factory=dict)
    taught: NDArray[np.bool_] | None = None

    def knows(self, network: str, metric: Metric) -> bool:
        """Whether there are errors of that network by that metric."""
        if metric.needs_outputs:
            return network in self.maps
        predicted = getattr(self, network)
        return predicted is not None and (not metric.records or np.ndim(predicted) == 2)

    def errors(self, task: Task, network: str, metric: Metric) -> Floats:
        """The errors of a network by a metric, float64 [N]; `knows` says whether there are any."""
        if metric.needs_outputs:
            return self.maps[network][:, task.map_metrics.index(metric)]
        return task.errors(getattr(self, network), self.true)

    @property
    def scope(self) -> str:
        """On how many images a verdict rests, such as `24 of 182 test photos`."""
        judged = len(self.names)
        part = f"{judged} of {self.available}" if judged < self.available else f"{judged}"
        return f"{part} test images"


@dataclass(frozen=True)
class Parity:
    """The deployed network's output against the trained one's.

    Args:
        sqnr_db: signal power over the power of the difference, pooled over images, in dB.
        max_rel_error: largest over images of max |difference| / max |trained|.
        n: images compared.
        mode: what was compared with what.
    """

    sqnr_db: float
    max_rel_error: float
    n: int
    mode: str


@dataclass(frozen=True, eq=False)
class Latency:
    """Teacher (`a`) and student (`b`), timed alternately on one machine.

    Args:
        times: the samples, ms a call.
        precision: of the student that was timed.
        mode: shape, threads, and what else a reader must know to compare.
        teacher_precision: of the teacher that was timed.
        others: the share of this machine's CPU time that other processes had meanwhile.
    """

    times: PairedTimes
    precision: str
    mode: str
    teacher_precision: str = "fp32"
    others: float = 0.0


@dataclass(frozen=True)
class Origin:
    """Where a network ran: the machine, the backend with its version, and what that proves."""

    machine: str
    backend: str
    backend_version: str
    evidence: Evidence


@dataclass(frozen=True)
class Earlier:
    """The earlier bundle that a student is judged against.

    Args:
        title: its name and target, in words.
        sha256: of its manifest.
        precision: of its network.
        ran: where and as what it ran on the test images, in words.
    """

    title: str
    sha256: str
    precision: str
    ran: str


@dataclass(frozen=True)
class Prediction:
    """The target's latency by its model at one precision of the student, in ms.

    Args:
        teacher: of the teacher, at the precision that it would be deployed in.
        student: of the student.
        band: factor by which either may be off, each way; 1.5 for 2/3 to 3/2 of the estimate.
        validated: measured fixtures of this target back the estimates.
        speedup: 90 % band of teacher over student, whose errors go together.
        teacher_precision: of the teacher.
    """

    teacher: float
    student: float
    band: float
    validated: bool
    speedup: tuple[float, float]
    teacher_precision: str = "fp32"


@dataclass(frozen=True, eq=False)
class VerifyContext:
    """All that `verify` measured, for the gates.

    Args:
        target: what the build is for.
        precision: the chosen one.
        task: what is predicted.
        outcomes: on the test photos.
        parity: of the deployed network.
        latency: of teacher and student, where the deployed network ran.
        predictions: of the target, by precision.
        files: bytes by name of every file that may be deployed.
        seed: of the bootstrap.
        deployed: where the deployed network ran and was timed.
        host: where the networks that it is compared with ran: ONNX Runtime on this machine.
        extra: further measurements for the report, such as end-to-end latencies.
        earlier: whose predictions `outcomes.previous` are.
        classes: the names that the data has for them.
        resources: what the deployed network takes of its device, where a gate asks for it.
        frame: of the deployed sample, likewise.
        unpredicted: why `predictions` is empty, where no model covers what the network runs on.
    """

    target: Target
    precision: str
    task: Task
    outcomes: Outcomes
    parity: Parity
    latency: Latency
    predictions: Mapping[str, Prediction]
    files: Mapping[str, int]
    seed: int
    deployed: Origin
    host: Origin
    extra: tuple[Measurement, ...] = ()
    earlier: Earlier | None = None
    classes: tuple[str, ...] | None = None
    resources: Resources | None = None
    frame: FrameTimes | PredictedFrame | Absent | None = None
    unpredicted: str = ""

    @property
    def evidence(self) -> Evidence:
        """What a measurement of the deployed network proves."""
        return self.deployed.evidence

    @property
    def ran_on_target(self) -> bool:
        """Whether the deployed network was timed on the target.

        A CPU target is this machine, unless its file names a vendor, which the evidence then has.
        """
        is_any_cpu = self.target.kind == "cpu" and not self.target.vendor
        return self.evidence == "device" or is_any_cpu

    @property
    def model(self) -> Origin:
        """The origin of what the target's latency model says."""
        return Origin(self.target.name, "latency model", "", "predicted")

    def measurement(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        origin: Origin | None = None,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        precision: str = "",
        mode: str = "",
    ) -> Measurement:
        """A number with its origin, the deployed network's by default, as `precision` is too."""
        where = origin or self.deployed
        return Measurement(
            name,
            value,
            unit,
            where.evidence,
            low=low,
            high=high,
            n=n,
            machine=where.machine,
            backend=where.backend,
            backend_version=where.backend_version,
            precision=precision or self.precision,
            mode=mode,
        )
