"""Time networks side by side: in ONNX Runtime of this process, or as engines on a board."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from kdcompile.backends import engine
from kdcompile.backends.candidate_runner import RUNS_HERE
from kdcompile.backends.deployed_form import DeployedForm
from kdcompile.backends.onnxruntime_ import OrtRunner, open_session
from kdcompile.config.spec import Spec
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.measurement import Settings, measure
from kdcompile.data.preprocess import Input, Preprocess
from kdcompile.latency_model.device_check import difference, mode_of
from kdcompile.remote.open import Place
from kdcompile.targets import Target

TIMING = Settings(blocks=15, warmup=1, seconds=30.0, repeats=20)


def form_of(spec: Spec, folder: Path) -> DeployedForm:
    """How a build of the spec deploys its networks; what they normalise with costs nothing.

    Args:
        spec: its section export.
        folder: for the files.
    """
    _, channels, *sides = spec.export.profile[1]
    ones, size = (1.0,) * channels, (sides[0], sides[1])
    prepare = Preprocess(channels, ones, ones, size, size)
    return DeployedForm(prepare.deployed(spec.export.preprocess), folder)


class HostTimer:
    """ONNX Runtime on this CPU, as a build for the CPU ships it.

    A context manager for networks that are timed together, under names; `label` says where.
    """

    label = "this machine"

    def __init__(self) -> None:
        self.runners: dict[str, OrtRunner] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.runners.clear()

    def file_of(self, precision: str) -> str | None:
        """The kind of ONNX file that a precision is built from; None where it cannot be built."""
        return precision if precision in RUNS_HERE else None

    def add(self, name: str, onnx: Path, precision: str) -> None:
        """Make a network ready.

        Raises:
            KDError: it cannot be built, loaded or run there.
        """
        self.runners[name] = open_session(onnx)

    def time(self, image: Input) -> tuple[dict[str, list[float]], str]:
        """Milliseconds of each network, samples of all interleaved, and how they were timed.

        Args:
            image: an input of the deployed networks.
        """
        calls = {name: (lambda r=runner: r(image)) for name, runner in self.runners.items()}
        found = measure(calls, TIMING).ms
        return {name: samples.tolist() for name, samples in found.items()}, "wall"


class BoardTimer:
    """As `HostTimer`, with engines that the agent on a board builds, loads and times."""

    def __init__(self, target: Target, board: Board, spec: Spec) -> None:
        """`spec`: its sections compile and export."""
        self.target, self.board, self.spec = target, board, spec
        self.label, self.names = board.label, list[str]()
        self._open = ExitStack()
        self.place: Place

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.place = stack.enter_context(engine.at(self.board))
            self._check()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def _check(self) -> None:
        """Only the target itself, in its power mode, has the latencies of its model."""
        if self.target.kind == "cpu":
            return
        about = self.place.about
        if self.board.evidence != "device" or difference(about, self.target):
            raise _foreign(self.label, self.target)
        running = mode_of(about, self.target)
        if running not in (None, self.target.power_mode):
            raise _foreign(f"{self.label} in power mode {running}", self.target)

    def file_of(self, precision: str) -> str | None:
        """As the agent's hello reports."""
        plan: Mapping[str, Any] | None = self.place.about["precisions"].get(precision)
        return None if plan is None else str(plan["onnx"])

    def add(self, name: str, onnx: Path, precision: str) -> None:
        """An engine, built unless an equal one is there, loaded and run once."""
        profile, form = self.spec.export.profile, form_of(self.spec, onnx.parent)
        built = engine.build(
            self.place, self.board, onnx, precision, self.spec.compile, form.profile(profile)
        )
        self.place.call("load", path=built.there, name=name)
        try:
            engine.prove(self.place, name, form.blank(profile[1]))
        except KDError:
            self.place.call("unload", name=name)
            raise
        self.names.append(name)

    def time(self, image: Input) -> tuple[dict[str, list[float]], str]:
        """By the device's clock, in the leanest mode that every network runs in."""
        mode, pace = engine.judged_pace(self.place, self.names, image)
        times = engine.in_turns(self.place, self.names, image, mode=mode, **asdict(pace))
        return {name: samples.tolist() for name, samples in times.items()}, mode


DeviceTimer = HostTimer | BoardTimer


def open_timer(target: Target, board: Board | None, spec: Spec) -> DeviceTimer:
    """The timer at a board, or of this process; only the device that the latencies are for.

    Raises:
        KDError: `measure-foreign`.
    """
    if board is None:
        if target.kind != "cpu":
            raise _foreign("ONNX Runtime on this machine's CPU", target)
        return HostTimer()
    return BoardTimer(target, board, spec)


def _foreign(device: str, target: Target) -> KDError:
    return KDError(
        "measure-foreign",
        f"{device} is not {target.full_name}: latencies there do not apply to it",
        where="[search] measure",
        fix="name the board with --via ssh://USER@BOARD, or search without measuring: "
        "--set search.measure=0",
    )
