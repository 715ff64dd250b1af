"""Engines behind a transport: built once, loaded, run and timed by the worker there."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import kdcompile.backends  # noqa: F401  # all of them: cache keys follow imports
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.measurement import interleave
from kdcompile.core.ports import Ports, as_row
from kdcompile.core.readers import read_json
from kdcompile.core.store import digest
from kdcompile.onnx_graph.session import ROW_AXES
from kdcompile.remote.open import Place, open_place

Floats = NDArray[np.float32]
T = TypeVar("T")
Times = NDArray[np.float64]
INPUT = "image"
MODES = ("graph", "device", "end_to_end")
ITERATIONS, SAMPLE_MS = 20, 300.0  # of one sample: at most so many inferences, in about so long
MIN_TURNS = 6  # what an interval over the samples needs
log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Built:
    """An engine at its place: where it lies there, what the worker said of it, its timing cache."""

    there: str
    about: Mapping[str, Any]
    timing_cache: str


@dataclass(frozen=True, eq=False)
class EngineRunner:
    """A network that is loaded in a worker, called like one of this process."""

    place: Place
    network: str
    name: str
    version: str

    def __call__(self, image: Floats) -> Floats:
        """Float32 [N, C, H, W] to the network's first output, or a row of its inputs to one of all.

        Raises:
            KDError: what the worker says, such as `shape-refused`.
        """
        outputs = self.place.run(feeds_of(self.place, image), self.network)
        if image.ndim == ROW_AXES:
            return as_row(list(outputs.values()))
        return np.asarray(next(iter(outputs.values())), np.float32)


@contextmanager
def at(board: Board, ports: Ports | None = None) -> Iterator[Place]:
    """The board's place, open; `ports` are the inputs of networks that run on rows."""
    with open_place(board.via, board.backend) as place:
        place.ports = ports
        yield place


def feeds_of(place: Place, image: Floats) -> dict[str, NDArray[Any]]:
    """What a network there is fed with, by name: an image, or a row of all of its inputs."""
    if image.ndim != ROW_AXES:
        return {INPUT: image}
    assert place.ports is not None, "who runs rows says of which inputs"
    return place.ports.unpack(image)


def build(
    place: Place,
    board: Board,
    onnx: Path,
    precision: str,
    settings: Compile,
    profile: Sequence[Sequence[int]],
) -> Built:
    """The engine of an ONNX file, built there, or the one that an earlier build left there.

    Args:
        place: where.
        board: its lasting facts, which an engine is bound to.
        onnx: with explicit Q/DQ or casts, as the worker's hello asks for this precision.
        precision: what the engine computes in.
        settings: how it is built.
        profile: smallest, typical and largest input shape.

    Raises:
        KDError: the worker's, such as `onnx-refused` or `build-failed`.
    """
    wanted = [file_sha256(onnx), precision, settings.model_dump(), profile, board.facts]
    stem = f"{onnx.stem.split('_')[0]}_{precision}-{digest(wanted)[:16]}"
    there = place.path(f"{stem}.engine")
    # a build that is bound to a cache fails on what is not in it: each such engine has its own
    cache = place.path(f"{stem}.cache" if settings.deterministic else "timing.cache")
    known = _sidecar(place, there)
    if known is None:
        options = settings.model_dump(exclude={"backend"})
        place.call(
            "build",
            onnx=place.put(onnx),
            engine=there,
            precision=precision,
            profile=[list(shape) for shape in profile],
            timing_cache=cache,
            **options,
        )
        known = _sidecar(place, there)
        assert known is not None, "build writes the sidecar"
    return Built(there, known, cache)


def _sidecar(place: Place, there: str) -> dict[str, Any] | None:
    """What is written beside a whole engine there."""
    side, found = there + ".json", place.call("stat", path=there)
    if not found["exists"] or not place.call("stat", path=side)["exists"]:
        return None
    about = place.record(side)
    return about if about["sha256"] == found["sha256"] else None


def bring(place: Place, built: Built, path: Path) -> None:
    """Fetch an engine to `path`, and write its record beside it as `path.json`."""
    place.get(built.there, path)
    write_json(path.with_name(path.name + ".json"), dict(built.about))


def take(place: Place, engine: Path, network: str) -> str:
    """Load an engine of this machine under a name, after the worker's pre-flight.

    Returns:
        The precision that it was built in.

    Raises:
        KDError: `engine-unknown`, `engine-damaged`, `engine-mismatch`, `engine-refused`.
    """
    about = record_of(engine)
    # by its content, and not under a name of its own: others may load theirs there meanwhile
    place.call("load", path=place.put(engine), name=network, expected=about)
    return str(about["precision"])


def record_of(engine: Path) -> dict[str, Any]:
    """What is written beside an engine of this machine.

    Raises:
        KDError: `engine-unknown`.
    """
    path = engine.with_name(engine.name + ".json")
    try:
        about = read_json(path)
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or "precision" not in about:
        raise KDError(
            "engine-unknown",
            f"{path.name} does not say what built {engine.name}",
            where=str(path),
            fix="build the engine again: kdcompile build --via PLACE",
        )
    return about


def runner(place: Place, board: Board, network: str) -> EngineRunner:
    """The loaded network as a callable."""
    return EngineRunner(place, network, board.backend, board.version)


def modes(place: Place) -> list[str]:
    """How latency is measured there, the judged mode first: the leanest way to run one image."""
    return [mode for mode in MODES if mode in place.about["modes"]]


def prove(place: Place, network: str, blank: NDArray[Any]) -> None:
    """Run a loaded network once, on an image of zeros; on a row of zeros where there are ports.

    Raises:
        KDError: it does not run there, such as `cuda-error` where memory is too little for it, or
            `provider-fallback`.
    """
    if place.ports is not None:
        blank = np.zeros((1, place.ports.width), np.float32)
    inputs = place.inputs(feeds_of(place, blank))
    place.call("time", inputs=inputs, iterations=1, warmup=0, name=network, mode="device")


@dataclass(frozen=True)
class Pace:
    """How much is timed: `turns` samples of each network, each of so many inferences."""

    turns: int
    iterations: int
    warmup: int


def pace(
    place: Place,
    networks: Sequence[str],
    image: Floats,
    *,
    mode: str,
    turns: int = 15,
    seconds: float = 60.0,
) -> Pace:
    """The pace that a device can keep: fewer inferences a sample, then fewer samples, where slow.

    Args:
        place: where the networks are loaded.
        networks: their names.
        image: float32 [N, C, H, W].
        mode: of the worker's `time`.
        turns: samples wanted of each.
        seconds: what all of them may take; `MIN_TURNS` are taken however long that is.
    """
    inputs, once = place.inputs(feeds_of(place, image)), []
    for name in networks:
        answer = place.call("time", inputs=inputs, iterations=1, warmup=1, name=name, mode=mode)
        once.append(median_of(answer, mode))
    iterations = max(1, min(ITERATIONS, int(SAMPLE_MS / max(once))))
    warmup = max(1, iterations // 2)
    one_turn = sum(once) * (iterations + warmup) / 1000
    return Pace(max(MIN_TURNS, min(turns, int(seconds / one_turn))), iterations, warmup)


def judged_pace(
    place: Place, networks: Sequence[str], image: Floats, *, turns: int = 15, seconds: float = 60.0
) -> tuple[str, Pace]:
    """The judged mode, the leanest one that every network runs in, and its pace.

    Not every engine can be captured as a CUDA graph; then all are judged without one, and the mode
    that is reported with each latency says so.

    Args:
        place: where the networks are loaded.
        networks: their names.
        image: float32 [N, C, H, W].
        turns: samples wanted of each.
        seconds: what all of them may take.
    """
    return leanest(
        place, lambda mode: pace(place, networks, image, mode=mode, turns=turns, seconds=seconds)
    )


def leanest(place: Place, attempt: Callable[[str], T]) -> tuple[str, T]:
    """The leanest mode in which an attempt succeeds, and what that returns.

    Raises:
        KDError: of an attempt, but for an engine that cannot be captured as a CUDA graph.
    """
    *lean, last = modes(place)
    for mode in lean:
        try:
            return mode, attempt(mode)
        except KDError as error:
            if error.code != "graph-refused":
                raise
            log.warning("timing without a CUDA graph: %s", error.message)
    return last, attempt(last)


def in_turns(
    place: Place,
    networks: Sequence[str],
    image: Floats,
    *,
    mode: str,
    turns: int = 15,
    iterations: int = 20,
    warmup: int = 10,
) -> dict[str, Times]:
    """Milliseconds of each network, the networks taking turns in an order that rotates.

    Args:
        place: where they are loaded.
        networks: their names.
        image: float32 [N, C, H, W].
        mode: of the worker's `time`.
        turns: samples of each.
        iterations: inferences that one sample is the median of.
        warmup: of each turn, not counted: the other network has had the caches.

    Returns:
        Float64 [turns] by name, neighbours in time at the same index.
    """
    found: dict[str, list[float]] = {name: [] for name in networks}
    settings: dict[str, Any] = {
        "inputs": place.inputs(feeds_of(place, image)),
        "mode": mode,
        "iterations": iterations,
        "warmup": warmup,
    }

    def take(name: str, turn: int) -> None:
        found[name].append(median_of(place.call("time", name=name, **settings), mode))

    interleave(networks, take, turns)
    return {name: np.array(values) for name, values in found.items()}


def median_of(answer: Mapping[str, Any], mode: str) -> float:
    """The median of an answer of `time`: of the device's clock where there is one.

    Raises:
        KDError: `time-zero`.
    """
    wanted = ("end_to_end",) if mode == "end_to_end" else ("device", "wall")
    found = [float(answer[name]["p50_ms"]) for name in wanted if answer.get(name)]
    if not found or found[0] <= 0:
        raise KDError(
            "time-zero",
            f"no latency of mode {mode} above 0 ms was returned",
            where="the worker's answer to time",
            fix="run the same command again; if it repeats, see kdcompile doctor --via PLACE",
        )
    return found[0]


def profile(place: Place, network: str, image: Floats) -> dict[str, Any]:
    """Milliseconds of each layer of a loaded network: `layers` and `total_ms`."""
    return place.call("profile", inputs=place.inputs(feeds_of(place, image)), name=network)
