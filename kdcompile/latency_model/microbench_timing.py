"""Measure the latency of the micro-benchmark networks on a device, interleaved, in limited time."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from kdcompile.backends import engine
from kdcompile.backends.candidate_runner import REFUSALS
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.microbench import FORMS, INPUT, Chain, convert, model_of
from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.remote.open import Place
from kdcompile.targets import Target

BUILD_SHARE = 0.75  # of the time, where compiling is slow
TURNS, LEAST_TURNS = 15, 3
MOST_ITERATIONS = 20  # of one network in one turn
QUANTILE = 25.0  # other work of the device only ever adds time
NOISY = 0.2  # of the median over that quantile: the device was not idle
DISTURBED = 2.5  # of that quantile over the fastest, or of the median over it: no clock explains it
REFUSED = (*REFUSALS, "onnx-refused")  # of one network; the others may be built
Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A network to measure: its name, its input's shape, and what makes it, in float32."""

    network: str
    shape: tuple[int, ...]
    make: Callable[[], ModelProto]

    def name(self, precision: str) -> str:
        """Of the network in this precision."""
        return f"{self.network}_{precision}"


def cases(chains: Sequence[Chain], target: Target) -> list[Case]:
    """The micro-benchmark's networks, as the target reads ONNX."""
    ir = min(target.ir_version, 8)
    return [Case(chain.name, chain.shape, partial(model_of, chain, ir)) for chain in chains]


@dataclass
class TimedNetwork:
    """One network in one precision on a device: its kernels, and milliseconds of each inference."""

    name: str
    network: str
    precision: str
    kernels: list[Kernel]
    inputs: str
    mode: str = ""
    once_ms: float = 0.0
    samples: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """The lower quartile."""
        return float(np.percentile(self.samples, QUANTILE))

    @property
    def spread(self) -> float:
        """How much longer the median is."""
        return float(np.median(self.samples)) / self.ms - 1

    @property
    def is_disturbed(self) -> bool:
        """Whether other work stood in the way of most inferences: `ms` is not the device's own."""
        return self.ms > DISTURBED * min(self.samples) or 1 + self.spread > DISTURBED


@dataclass(frozen=True)
class Times:
    """What was measured, and what was not: networks by name with the reason."""

    timed: list[TimedNetwork]
    refused: dict[str, str]
    left_out: list[str]

    @property
    def undisturbed(self) -> list[TimedNetwork]:
        """Those that a fit may use."""
        return [row for row in self.timed if not row.is_disturbed]

    @property
    def noisy(self) -> list[str]:
        """Those whose inferences differ by much."""
        return [row.name for row in self.timed if row.spread > NOISY]


def measure(
    place: Place,
    board: Board,
    target: Target,
    networks: Sequence[Case],
    seconds: float,
    say: Say = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Times:
    """The latency of each network in each precision that target and device share.

    Every network is built and run once, in order, as long as `BUILD_SHARE` of the time lasts; the
    rest goes to turns in which each is run, in an order that rotates, so that a device that warms
    up or is disturbed harms all alike. What was built is removed there.

    Args:
        place: an open connection to the device.
        board: its lasting facts.
        target: gives the precisions.
        networks: in order of importance.
        seconds: in all. A device that is too slow for it is given `LEAST_TURNS` turns.
        say: called with each progress message.
        clock: seconds.

    Raises:
        KDError: `calibrate-nothing`, no network was built; what ends the connection.
    """
    start = clock()
    precisions = shared_precisions(place, target)
    wanted = [(case, precision) for case in networks for precision in precisions]
    timed: list[TimedNetwork] = []
    refused: dict[str, str] = {}
    remote_files: list[str] = []
    try:
        for number, (case, precision) in enumerate(wanted):
            if timed and clock() - start > BUILD_SHARE * seconds:
                break
            say(f"building {number + 1} of {len(wanted)}: {case.name(precision)}")
            try:
                timed.append(_prepare(place, board, case, precision, remote_files))
            except KDError as error:
                if error.code not in REFUSED:
                    raise
                refused[case.name(precision)] = error.message
        if not timed:
            raise _nothing_built(place, refused)
        _take_turns(place, timed, start + seconds, say, clock)
    finally:
        with suppress(KDError):  # of a device that is gone
            for path in remote_files:
                place.call("remove", path=path)
    names = [case.name(precision) for case, precision in wanted]
    return Times(timed, refused, names[len(timed) + len(refused) :])


def shared_precisions(place: Place, target: Target) -> list[str]:
    """Those that the target has, the device builds and a network here can be written in.

    Raises:
        KDError: `calibrate-nothing`.
    """
    plans = place.about["precisions"]
    found = [p for p in target.precisions if p in plans and plans[p]["onnx"] in FORMS]
    if not found:
        raise _nothing_built(place, dict.fromkeys(target.precisions, "not built there"))
    return found


def _prepare(
    place: Place, board: Board, case: Case, precision: str, remote_files: list[str]
) -> TimedNetwork:
    """Build and load a network and run it; `remote_files` takes the files that this leaves."""
    name, plan = case.name(precision), place.about["precisions"][precision]
    tensorrt = board.version if board.backend == "tensorrt" else None
    model = convert(case.make(), plan["onnx"], tensorrt)
    with scratch() as folder:
        path, arrays = Path(folder) / "network.onnx", Path(folder) / "in.npz"
        onnx.save(model, path)
        image = np.random.default_rng(0).standard_normal(case.shape, np.float32)
        np.savez(arrays, allow_pickle=False, **{INPUT: image})
        inputs = place.put(arrays)  # once, not before each turn
        remote_files.append(inputs)
        remote_files.append(place.put(path))
        built = engine.build(place, board, path, precision, Compile(), [case.shape] * 3)
    remote_files += [built.there, f"{built.there}.json"]
    place.call("load", path=built.there, name=name)
    kernels = kernels_of(model, case.shape, _floats(plan["flags"]))
    row = TimedNetwork(name, case.network, precision, kernels, inputs)
    for row.mode in engine.modes(place):
        try:
            row.once_ms = min(_run(place, row, 2, 2))
        except KDError as error:
            if error.code != "graph-refused":
                raise
        else:
            return row
    raise AssertionError("only the first of the modes is a graph")


def _run(place: Place, row: TimedNetwork, iterations: int, warmup: int) -> list[float]:
    """Milliseconds of each inference, by the device's clock where there is one."""
    answer = place.call(
        "time", inputs=row.inputs, iterations=iterations, warmup=warmup, name=row.name,
        mode=row.mode, samples=True,
    )  # fmt: skip
    found = answer["samples"]
    return [float(ms) for ms in found.get("device") or found.get("wall") or found["end_to_end"]]


def _floats(flags: Sequence[str]) -> Precision:
    """What a builder that takes flags makes of the file's float32."""
    return "fp16" if "FP16" in flags else "bf16" if "BF16" in flags else "fp32"


def _take_turns(
    place: Place, timed: Sequence[TimedNetwork], end: float, say: Say, clock: Callable[[], float]
) -> None:
    """Fill the samples of each until the end, or until there were `TURNS`."""
    share = 1000 * max(0.0, end - clock()) / (TURNS * len(timed))
    for turn in range(TURNS):
        if turn >= LEAST_TURNS and clock() > end:
            break
        say(f"timing: turn {turn + 1} of {TURNS}, {len(timed)} networks")
        first = turn * len(timed) // TURNS
        for row in (*timed[first:], *timed[:first]):
            count = max(2, int(min(MOST_ITERATIONS, share / row.once_ms)))
            row.samples += _run(place, row, count, warmup=1)


def _nothing_built(place: Place, refused: dict[str, str]) -> KDError:
    why = next(iter(refused.values()), "no network was tried")
    return KDError(
        "calibrate-nothing",
        f"{place.label} built no network: {why}",
        where=place.label,
        fix="see what is missing there: kdcompile doctor --via PLACE",
    )
