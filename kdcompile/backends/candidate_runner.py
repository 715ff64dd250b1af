"""Run and time the candidates of a build: by ONNX Runtime here, or as engines on a board.

And the teacher's engine, which the student's is timed against.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.backends.deployed_form import DeployedForm
from kdcompile.backends.onnxruntime_ import OnnxRuntime, open_session
from kdcompile.config.spec import Spec
from kdcompile.config.step import Board
from kdcompile.core.backends import find, is_served
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json, write_text
from kdcompile.core.measurement import Settings, measure
from kdcompile.core.report import Evidence
from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Input, Preprocess
from kdcompile.remote.open import Place
from kdcompile.targets import Target
from kdcompile.tasks.task import Task

Floats = NDArray[np.float32]
Runner = Callable[[Floats], Floats]
Paths = Mapping[str, Path]
Profiles = Mapping[str, Sequence[Mapping[str, Any]]]  # layers with `name`, `ms`, `onnx`
# of one candidate; the others may still be built
REFUSALS = (
    "precision-refused", "build-failed", "engine-refused", "cuda-error", "run-failed",
    "provider-fallback",
)  # fmt: skip
TIMING = Settings(blocks=15, warmup=2, seconds=10.0, repeats=3)
RUNS_HERE = OnnxRuntime.precisions


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image at the typical shape, and where the number is from."""

    ms: float
    evidence: Evidence
    note: str


class Rig(Protocol):
    """Candidates that can be run and timed.

    `runners` are those that are ready, by precision; `refused` says why another is not. Paths are
    of exported files; what is run and kept has the deployed form.
    """

    form: DeployedForm
    runners: dict[str, Runner]
    refused: dict[str, str]

    def add(self, precision: str, paths: Paths) -> None:
        """Make a precision ready, or say in `refused` why not."""

    def latencies(self, image: Floats) -> dict[str, Latency]:
        """Of every precision that is ready, at a float32 [1, C, H, W]."""

    def profiles(self, image: Floats) -> Profiles:
        """The layers of each engine with their times; empty where nothing measures them."""

    def expect(self, precision: str, price: Callable[[], Mapping[str, Any]]) -> None:
        """Take the price of a precision's own file, where latencies are predicted."""

    def keep(self, precision: str, paths: Paths, folder: Path) -> None:
        """Leave in the stage's folder what the chosen precision and the report need."""


class HostRig:
    """ONNX Runtime on this CPU; another device's latencies are its model's."""

    def __init__(self, target: Target, estimates: Mapping[str, Any], form: DeployedForm) -> None:
        """`estimates`: of the student, by precision, as the search wrote them."""
        self.target, self.estimates, self.form = target, dict(estimates), form
        self.runners: dict[str, Runner] = {}
        self.refused: dict[str, str] = {}

    def add(self, precision: str, paths: Paths) -> None:
        """A session."""
        if precision not in RUNS_HERE:
            self.refused[precision] = f"ONNX Runtime's CPU kernels have no {precision}"
        elif precision not in self.estimates and self.target.kind != "cpu":
            self.refused[precision] = "the latency model has no estimate of it"
        else:
            # a CPU target ships what ONNX Runtime makes of the file, the others what it says
            written = self.target.kind != "cpu"
            path = self.form.file(paths[precision])
            self.runners[precision] = open_session(path, as_written=written)

    def latencies(self, image: Floats) -> dict[str, Latency]:
        """Measured here where here is the target, else what the latency model predicts."""
        if self.target.kind == "cpu":
            calls = {p: (lambda r=runner: r(image)) for p, runner in self.runners.items()}
            times, note = (
                measure(calls, TIMING).ms,
                "median of the fastest calls of interleaved blocks",
            )
            return {p: Latency(float(np.median(ms)), "host", note) for p, ms in times.items()}
        found = {}
        for precision in self.runners:
            e = self.estimates[precision]
            state = "validated" if e["validated"] else "unvalidated"
            note = f"{e['low_ms']:.3g} to {e['high_ms']:.3g} ms, {state} latency model"
            found[precision] = Latency(float(e["ms"]), "predicted", note)
        return found

    def profiles(self, image: Floats) -> Profiles:
        """None: a CPU's nodes say nothing of another device's."""
        return {}

    def expect(self, precision: str, price: Callable[[], Mapping[str, Any]]) -> None:
        """It stands for what the search expected."""
        self.estimates[precision] = price()

    def keep(self, precision: str, paths: Paths, folder: Path) -> None:
        """The chosen file."""
        (folder / "model.onnx").write_bytes(self.form.file(paths[precision]).read_bytes())


class BoardRig:
    """Engines, built and timed by the agent at a board, or by a process that serves a backend."""

    def __init__(
        self, place: Place, board: Board, spec: Spec, target: Target, form: DeployedForm
    ) -> None:
        """`place`: the board's, open; `spec`: its sections compile and export."""
        self.place, self.board, self.spec, self.form = place, board, spec, form
        self.profile = form.profile(spec.export.profile)
        self.able = find(board.backend).capabilities(target)
        self.runners: dict[str, Runner] = {}
        self.refused: dict[str, str] = {}
        self.built: dict[str, engine.Built] = {}
        self.measured: dict[str, Any] = {}
        self.image: Floats | None = None  # of the typical shape, once there is one

    def add(self, precision: str, paths: Paths) -> None:
        """Build and load the engine; `refused` where the worker cannot, with its reason.

        Raises:
            KDError: the network itself is refused.
        """
        plan = self.place.about["precisions"].get(precision)
        if plan is None:
            self.refused[precision] = f"{self.board.backend} {self.board.version} does not build it"
            return
        onnx = self.onnx(precision, paths)
        if refusal := self.able.refusal(precision, self.spec.compile.model_dump()):
            self.refused[precision] = refusal
            return
        try:
            built = self.load(onnx, precision, precision)
        except KDError as error:
            # a network that kdcompile itself mixed is no fault of the user's
            if error.code not in REFUSALS and (precision, error.code) != ("mixed", "onnx-refused"):
                raise
            self.refused[precision] = error.message
            return
        self.built[precision] = built
        self.runners[precision] = engine.runner(self.place, self.board, precision)

    def load(self, onnx: Path, precision: str, name: str) -> engine.Built:
        """Build an engine there, load it under a name, and run it once."""
        settings = self.spec.compile
        built = engine.build(self.place, self.board, onnx, precision, settings, self.profile)
        self.place.call("load", path=built.there, name=name)
        engine.prove(self.place, name, self.form.blank(self.spec.export.profile[1]))
        return built

    def medians(self, names: Sequence[str], image: Input) -> tuple[str, dict[str, float]]:
        """The judged mode, and the median of each loaded engine, which take turns."""
        mode, pace = engine.judged_pace(self.place, names, image)
        times = engine.in_turns(self.place, names, image, mode=mode, **asdict(pace))
        return mode, {name: float(np.median(samples)) for name, samples in times.items()}

    def onnx(self, precision: str, paths: Paths) -> Path:
        """The file that this worker builds a precision from, as it is deployed."""
        wanted = self.place.about["precisions"][precision]["onnx"]
        if wanted not in paths:
            raise KDError(
                "precision-unsupported",
                f"{self.board.backend} {self.board.version} builds {precision} from a {wanted} "
                "network, which this build does not make",
                where="[quantize] precision",
                fix=f"--set quantize.precision=auto, or one of {', '.join(paths)}",
            )
        return self.form.file(paths[wanted])

    def latencies(self, image: Floats) -> dict[str, Latency]:
        """Medians of engines that took turns there, in the judged mode."""
        self.image = image
        mode, medians = self.medians(list(self.runners), image)
        note = f"median of alternated runs at {self.board.label}, {mode}"
        return {p: Latency(ms, self.board.evidence, note) for p, ms in medians.items()}

    def profiles(self, image: Floats) -> Profiles:
        """Of every engine that is ready, measured layer by layer; the report has them too."""
        for precision in self.runners:
            self.measured[precision] = engine.profile(self.place, precision, image)
        return {precision: found["layers"] for precision, found in self.measured.items()}

    def expect(self, precision: str, price: Callable[[], Mapping[str, Any]]) -> None:
        """Nothing: it will be measured."""

    def keep(self, precision: str, paths: Paths, folder: Path) -> None:
        """The engine with its sidecar, the network it is of, the timing cache, the layers."""
        if precision not in self.measured and self.image is not None:
            self.measured[precision] = engine.profile(self.place, precision, self.image)
        onnx = self.onnx(precision, paths)
        (folder / "model.onnx").write_bytes(onnx.read_bytes())
        engine.bring(self.place, self.built[precision], folder / "model.engine")
        cache = self.built[precision].timing_cache
        if self.place.call("stat", path=cache)["exists"]:
            self.place.get(cache, folder / "timing.cache")
        record = {
            p: {"build": b.about, "profile": self.measured.get(p)} for p, b in self.built.items()
        }
        write_json(folder / "engines.json", record)
        if is_served(self.board.backend):
            write_opener(self.board.backend, folder)


def write_opener(backend: str, folder: Path) -> None:
    """Write `opener.py`, with which `infer.py` opens an engine of a backend without kdcompile."""
    source = inspect.getsource(find(backend).opener)
    head = f'"""Opens an engine of {backend}: `open_network(path)` is a function of one array."""'
    text = f"{head}\n\nfrom __future__ import annotations\n\nfrom typing import Any\n\n\n{source}"
    write_text(folder / "opener.py", text)


FILES = {"fp32": "teacher.onnx", "fp16": "teacher_fp16.onnx"}


def teacher_precision(student: str) -> str:
    """What the teacher computes in beside a student: fp32 beside fp32, else fp16.

    A teacher is not calibrated; fp16 is what one would deploy without compressing it.
    """
    return "fp32" if student == "fp32" else "fp16"


def keep_teacher(rig: BoardRig, export: Artifact, student: str, folder: Path) -> None:
    """Build the teacher's engine where the student's is; `teacher.engine` and its sidecar.

    Raises:
        KDError: what the worker says of the network.
    """
    paths = {p: export.file(name) for p, name in FILES.items() if name in export.files}
    precision = teacher_precision(student)
    plan = rig.place.about["precisions"].get(precision)
    if plan is None or plan["onnx"] not in paths:
        precision = "fp32"  # the GPU has no fp16, or the teacher's weights overflow in it
    onnx, settings = rig.onnx(precision, paths), rig.spec.compile
    built = engine.build(rig.place, rig.board, onnx, precision, settings, rig.profile)
    engine.bring(rig.place, built, folder / "teacher.engine")


def predict_outputs(
    runner: Runner, photos: Iterable[Photo], preprocess: Preprocess
) -> tuple[list[Floats], list[Frame]]:
    """The network's output for each image, [1, ...], and where the image lay in its input.

    `Task.within` and `Task.predictions` say what both mean.

    Args:
        runner: an input to the output.
        photos: read one at a time, so that a whole split never lies in memory.
        preprocess: of the network.

    Raises:
        KDError: an image cannot be read.
    """
    outputs, frames = [], []
    for photo in photos:
        given, frame = preprocess.view(photo)
        outputs.append(runner(given))
        frames.append(frame)
    return outputs, frames


def predictions(task: Task, outputs: Iterable[Floats], frames: Iterable[Frame]) -> list[Any]:
    """What the outputs of `predict_outputs` say of each image, without their padding."""
    each = zip(outputs, frames, strict=True)
    return [task.predictions(task.within(output, frame))[0] for output, frame in each]
