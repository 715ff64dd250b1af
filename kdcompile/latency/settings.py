"""Settings of a latency measurement: its effort, and the mode that both sides must share.

A wish (`Mode`) leaves open what a place may decide; a `Way` is what its worker can do about it. A
network that takes no CUDA graph is timed without one, and the record says which it was.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdcompile.core.errors import KDError

Copies = Literal["none", "in", "out", "both"]
COPYING: Mapping[Copies, str] = {"in": "copy_in", "out": "copy_out", "both": "end_to_end"}
WARMUP = "until the medians of bursts agree"


@dataclass(frozen=True)
class Way:
    """One way in which a worker times.

    Args:
        worker_mode: of its `time`.
        graph: a CUDA graph is replayed.
        streams: inferences in flight.
    """

    worker_mode: str
    graph: bool
    streams: int = 1

    @property
    def copies(self) -> Copies:
        """What is copied within the latency."""
        return next((c for c, mode in COPYING.items() if mode == self.worker_mode), "none")


@dataclass(frozen=True)
class Mode:
    """What the user wishes.

    Args:
        batch: images of one inference; None leaves the artifact's own.
        streams: inferences in flight, each with a context, or session, of its own.
        copies: whether inputs are copied to the device, outputs from it, within the latency.
        graph: replay a CUDA graph; None where the place and the networks can.
        spin: wait for the device by spinning; None as the backend does.
        kept: `threads` is of a baseline and no wish, so that a GPU is refused for what it is.
        threads: of a CPU that one operator runs on; None for 1 there. More threads wait for each
            other: on cores that have other work too, one inference then takes a multiple of the
            next.
    """

    batch: int | None = None
    streams: int = 1
    copies: Copies = "none"
    graph: bool | None = None
    spin: bool | None = None
    threads: int | None = None
    kept: bool = False

    def threads_at(self, about: Mapping[str, Any]) -> int | None:
        """Threads of a worker's CPU; None where it runs on a GPU.

        Raises:
            KDError: `mode-refused`.
        """
        if about["gpu"] is None:
            if self.threads is not None and self.threads < 1:
                raise _refused(f"{self.threads} threads", "1 or more threads", about)
            return self.threads or 1
        if self.threads is not None and not self.kept:
            raise _refused("threads of a CPU", "the GPU", about)
        return None

    def resolve(self, about: Mapping[str, Any]) -> list[Way]:
        """What a worker can do about it, the leanest first.

        Args:
            about: the worker's hello.

        Raises:
            KDError: `mode-refused`, with what the backend can do.
        """
        if self.batch is not None and self.batch < 1:
            raise _refused(f"a batch of {self.batch}", "1 or more images", about)
        most = about.get("streams", 1)
        if not 1 <= self.streams <= most:
            raise _refused(f"{self.streams} streams", f"1 to {most} streams", about)
        if self.spin is not None and (about["gpu"] is not None or not self.spin):
            asked = "spinning" if self.spin else "sleeping"
            raise _refused(f"waiting by {asked}", f"waiting by {waits_by(about)}", about)
        copying = COPYING.get(self.copies)
        if copying is not None and copying not in about["modes"]:
            able = " and ".join(["none", *(c for c, m in COPYING.items() if m in about["modes"])])
            raise _refused(f"copies {self.copies}", f"copies {able}", about)
        has_graph = "graph" in about["modes"]
        if self.graph and not has_graph:
            raise _refused("a CUDA graph", "no CUDA graph", about)
        lean, plain = (copying or "graph"), (copying or "device")
        ways = [Way(lean, True, self.streams)] if has_graph and self.graph is not False else []
        return ways if self.graph else [*ways, Way(plain, False, self.streams)]


def recorded(
    about: Mapping[str, Any], way: Way, clock: str, shapes: str, threads: int | None
) -> dict[str, Any]:
    """What is written beside the samples: a comparison holds every key of it equal.

    Args:
        about: the worker's hello.
        way: in which it timed.
        clock: `device` (events around each inference, on several streams with its copies),
            `wall` or `end_to_end` (with the copies).
        shapes: of the inputs, such as `1x3x576x768 float32`; the batch is the first size.
        threads: of `Mode.threads_at`.
    """
    return {
        "clock": clock,
        "batch": int(shapes.split("x")[0]) if shapes[:1].isdigit() else 1,
        "input": shapes,
        "streams": way.streams,
        "copies": way.copies,
        "graph": way.graph,
        "waits_by": waits_by(about),
        "threads": threads,
        "warmup": WARMUP,
    }


def waits_by(about: Mapping[str, Any]) -> str:
    """`spinning`, or `the driver's choice`: CUDA spins where there are cores for it."""
    return "spinning" if about["gpu"] is None else "the driver's choice"


def _refused(asked: str, able: str, about: Mapping[str, Any]) -> KDError:
    backend = f"{about['backend']} {about['backend_version']}"
    return KDError(
        "mode-refused",
        f"{asked} was asked for; {backend} measures with {able}",
        where="the measuring mode",
        fix=f"ask for {able}, or leave the option out",
    )


MIN_BLOCKS = 2


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        processes: of each build; each is started anew.
        blocks: of each subject in each process.
        builds: of each subject.
        seconds: that all of it may take, the starts of processes too but not the builds. One
            process of each build with two blocks a side is taken however long that is.
        process_s: that one process may take, its start too.
        samples: inferences of each subject in all, in one process: in place of blocks, for who
            wants few and no verdict.
    """

    processes: int = 3
    blocks: int = 20
    builds: int = 1
    seconds: float = 60.0
    samples: int | None = None
    process_s: float = math.inf

    def sizes(self, iterations: int) -> list[int]:
        """Inferences of each block of a process, by default so many each."""
        if self.samples is None:
            return [iterations] * self.blocks
        count = min(self.blocks, self.samples)
        each, more = divmod(self.samples, count)
        return [each + (i < more) for i in range(count)]

    def check(self, streams: int = 1) -> None:
        """Refuse what cannot be measured, with so many inferences in flight.

        Raises:
            KDError: `effort-refused`.
        """
        least = {"processes": 1, "blocks": MIN_BLOCKS, "builds": 1, "samples": MIN_BLOCKS}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise _effort(f"{name} must be at least {low} (got {value})", f"give {low} or more")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise _effort(f"seconds must be above 0 (got {self.seconds})", "give a time above 0")
        if self.samples is not None and self.builds > 1:
            fault = f"samples are taken of one build (got {self.builds} builds)"
            raise _effort(fault, "leave out the builds, or the number of samples")
        if self.samples is not None and streams > 1:
            fault = f"samples are taken in one stream (got {streams} streams)"
            raise _effort(fault, "give one stream, or leave out the number of samples")


def _effort(fault: str, fix: str) -> KDError:
    return KDError("effort-refused", fault, where="the measurement", fix=fix)
