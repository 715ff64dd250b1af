"""Measure latency in several processes, warmed up until they are steady, with alternating blocks.

In each process every subject is loaded, and blocks are taken in the order A B B A ..., so that a
drift of the machine touches both sides alike; from process to process the order turns round, as
what is loaded first lies elsewhere in memory.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.core.interleave import in_order, interleave
from kdcompile.latency.compatibility import check_unchanged
from kdcompile.latency.energy_memory import usage
from kdcompile.latency.environment import look
from kdcompile.latency.interference import Past, Watch, watch_of
from kdcompile.latency.settings import MIN_BLOCKS, Effort, Mode, Way, recorded
from kdcompile.latency.subject import Subject, common_backend
from kdcompile.latency.subjects import Arrays, Engine, built, inputs_for, joined, load
from kdcompile.latency.warmup import Loaded, Pace, Warm, pace_of, warm_up
from kdcompile.remote.open import Place, open_place
from kdcompile.stats.samples import Block, Build, Process, Run, Samples

REPEATS = 1 / 3  # of the blocks wanted: at most so many more, where some were disturbed
WARMUP_S, WARMUP_SHARE = 2.0, 0.25  # the most that a warm-up may take, also of its process's time
__all__ = ["Effort", "Mode", "Tools", "measure"]
log = logging.getLogger("kdcompile")

OnRound = Callable[[list[Samples]], bool]


@dataclass(frozen=True)
class Tools:
    """What a test has its own of."""

    open_place: Callable[[str | None, str], Place] = open_place
    watch: Callable[[Place, Past], Watch] = watch_of
    look: Callable[[Place], dict[str, Any]] = look
    clock: Callable[[], float] = time.monotonic


def measure(
    subjects: Sequence[Subject],
    via: str | None,
    effort: Effort,
    mode: Mode,
    *,
    on_round: OnRound | None = None,
    tools: Tools | None = None,
    with_usage: bool = False,
) -> list[Samples]:
    """Latencies of artifacts that take turns in the same processes.

    Args:
        subjects: one, or several that one place runs and that take equal inputs.
        via: the place, as `open_place` reads it.
        effort: how much.
        mode: how.
        on_round: is asked after each process with what there is; True ends the measurement.
        tools: of tests.
        with_usage: then read what each takes of the device too, in a process of its own (`usage`
            of the environment's state).

    Returns:
        One `Samples` a subject, each with one run; their trees are alike, and blocks at the same
        place are neighbours in time. Disturbed blocks are among them, marked.

    Raises:
        KDError: `effort-refused`, `mode-refused`, `backend-differs`, `builds-none`,
            `shape-unknown`, `shape-refused`, `inputs-differ`; what opening the place, building and
            loading raise; `machine-changed`; `bench-failed`, an engine that fails midway.
        ToolMissingError: the backend is not installed there.
    """
    effort.check(mode.streams)
    backend = common_backend(subjects)
    used = tools or Tools()

    def open_() -> Place:
        return used.open_place(via, backend)

    with built(subjects, backend, effort.builds, mode.batch, open_) as engines:
        session = _Session(subjects, engines, open_, effort, mode, used)
        found = session.run(on_round)
        return session.with_usage() if with_usage else found


def environment_at(via: str | None, backend: str, tools: Tools | None = None) -> dict[str, Any]:
    """The environment of a place, before anything is measured there; raises what opening does."""
    used = tools or Tools()
    with used.open_place(via, backend) as place:
        return used.look(place)


class _Session:
    """One run: its processes one after the other, and what they found."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        engines: Sequence[Sequence[Engine]],
        open_: Callable[[], Place],
        effort: Effort,
        mode: Mode,
        tools: Tools,
    ) -> None:
        self.subjects, self.engines, self.open = subjects, engines, open_
        self.effort, self.mode, self.tools, self.past = effort, mode, tools, Past()
        self.builds = max(map(len, engines))
        self.total = 1 if effort.samples is not None else effort.processes * self.builds
        self.trees: list[list[list[Process]]] = [[[] for _ in e] for e in engines]
        self.wall: list[list[float]] = [[] for _ in subjects]
        self.rates: list[list[float]] = [[] for _ in subjects]  # of each block, several streams
        self.parts: list[dict[str, list[float]]] = [{} for _ in subjects]  # ms by their names
        self.usage: dict[int, dict[str, Any]] = {}  # by subject, where it was read
        self.warm: list[Warm] = []
        self.ways: list[Way] = []
        self.threads: int | None = None
        self.pace: Pace | None = None
        self.environment: dict[str, Any] = {}
        self.recorded: dict[str, Any] = {}
        self.started, self.begin = _now(), tools.clock()

    def run(self, on_round: OnRound | None) -> list[Samples]:
        """Processes until there are enough, the time is up, or `on_round` says so."""
        clock, start_s, end_s = self.tools.clock, 0.0, 0.0  # of a process, beside its round
        for number in range(self.total):
            start = clock()
            if number >= self.builds and start - self.begin + start_s + end_s > self.effort.seconds:
                log.info("the time is up after %d of %d processes", number, self.total)
                break
            log.info("measuring: process %d of %d", number + 1, self.total)
            with self.open() as place:
                loaded, watch = self._ready(place, number), self.tools.watch(place, self.past)
                start_s = clock() - start
                self._round(loaded, watch, number, self._share(number, start_s, end_s))
                end = clock()
            end_s = clock() - end
            if on_round is not None and on_round(self.found()):
                break
        return self.found()

    def with_usage(self) -> list[Samples]:
        """What there is, and what each subject takes of the device."""
        for i, subject in enumerate(self.subjects):

            def alone(place: Place, name: str, i: int = i, subject: Subject = subject) -> Arrays:
                way, engine = self.ways[0], self.engines[i][0]
                answer = load(place, subject, engine, name, way.graph, self.threads)
                return inputs_for(subject, answer, self.mode.batch)

            self.usage[i] = usage(self.open, alone)
        return self.found()

    def found(self) -> list[Samples]:
        """What there is so far."""
        made = []
        for number, (subject, engines, tree) in enumerate(
            zip(self.subjects, self.engines, self.trees, strict=True)
        ):
            builds = tuple(
                Build(engine.sha256, tuple(processes))
                for engine, processes in zip(engines, tree, strict=True)
                if processes
            )
            environment = {
                "facts": self.environment["facts"],
                "state": self.environment["state"] | self._state(number),
            }
            run = Run(self.started, environment, self.recorded, builds)
            made.append(Samples(subject.name, subject.sha256, (run,)))
        return made

    def _state(self, number: int) -> dict[str, Any]:
        assert self.pace is not None, "a process was measured"
        wall, rates = self.wall[number], self.rates[number]
        parts = {name: median(ms) for name, ms in self.parts[number].items()}
        return {
            "warmup_s": [round(warm.seconds, 3) for warm in self.warm],
            "warmup_stable": all(warm.stable for warm in self.warm),
            "inferences_of_a_block": self.pace.iterations,
            "watched": self.past.to_json() or None,  # None: a place of which nothing can be read
            "wall_p50_ms": median(wall) if wall else None,
            **({"inferences_per_s": median(rates)} if rates else {}),
            **({"usage": self.usage[number]} if number in self.usage else {}),
            **({"parts_ms": parts} if parts else {}),
        }

    def _ready(self, place: Place, number: int) -> Loaded:
        """Everything loaded and run once; the first process settles the mode for all."""
        if not self.ways:
            self.ways = self.mode.resolve(place.about)
            self.threads = self.mode.threads_at(place.about)
        while True:
            try:
                loaded, shapes = self._load(place, number)
                clock = loaded.clock()
                break
            except KDError as error:
                if error.code != "graph-refused" or len(self.ways) == 1:
                    raise
                log.warning("timing without a CUDA graph: %s", error.message)
                self.ways = self.ways[1:]
        self.ways = self.ways[:1]
        environment = self.tools.look(place)
        if not self.recorded:
            self.recorded = recorded(place.about, self.ways[0], clock, shapes, self.threads)
            self.environment = environment
        check_unchanged(self.environment["facts"], environment["facts"], place.label)
        return loaded

    def _load(self, place: Place, number: int) -> tuple[Loaded, str]:
        """Every subject under its own name, in turned order in every other process."""
        names = [f"side{i}" for i in range(len(self.subjects))]
        arrays: list[Arrays] = [{} for _ in names]
        for i in in_order(range(len(names)), self._turn(number)):
            engine = self.engines[i][number % len(self.engines[i])]
            answer = load(
                place, self.subjects[i], engine, names[i], self.ways[0].graph, self.threads
            )
            arrays[i] = inputs_for(self.subjects[i], answer, self.mode.batch)
        inputs, shapes = joined(self.subjects, arrays)
        return Loaded(place, names, place.inputs(inputs), self.ways[0]), shapes

    def _turn(self, number: int) -> int:
        """Odd and even ones alternate from process to process and within each build's."""
        return number // self.builds + number % self.builds

    def _share(self, number: int, start_s: float, end_s: float) -> float:
        """Seconds of a process that has started, where others start and end as slowly."""
        left = self.begin + self.effort.seconds - self.tools.clock()
        # of more than three, only so many that half of the time is left to measure in
        able = max(3, int(left / (2 * (start_s + end_s)))) if start_s + end_s > 0 else self.total
        count = min(self.total - number, able)  # this one too
        share = (left - start_s * (count - 1) - end_s * count) / count
        return max(0.0, min(share, self.effort.process_s - start_s - end_s))

    def _round(self, loaded: Loaded, watch: Watch, number: int, share: float) -> None:
        """One process, in its share of the seconds: kept when all of it is whole."""
        clock, begin = self.tools.clock, self.tools.clock()
        where = f"{loaded.place.label}, process {number + 1}"
        with _failing(f"{where}, warm-up"):
            warm = warm_up(loaded, watch, min(WARMUP_S, WARMUP_SHARE * share), clock)
        self.warm.append(warm)
        self.pace = self.pace or pace_of(warm, self.ways[0].streams)
        sides: list[list[Block]] = [[] for _ in self.subjects]
        sizes = self.effort.sizes(self.pace.iterations)
        repeats = 0 if self.effort.samples is not None else round(REPEATS * len(sizes))
        starts: list[float] = []

        def has_time() -> bool:
            starts.append(clock())
            longest = max((end - start for start, end in pairwise(starts)), default=0.0)
            return starts[-1] + longest <= begin + share

        def take(i: int, turn: int) -> bool:
            size = sizes[min(turn, len(sizes) - 1)]
            with _failing(f"{where}, block {turn + 1} of {self.subjects[i].name}"):
                sides[i].append(self._block(loaded, watch, i, size))
            return sides[i][-1].disturbed is not None

        interleave(
            range(len(sides)), take, len(sizes), has_time, least=MIN_BLOCKS, repeats=repeats,
            first=self._turn(number),
        )  # fmt: skip
        for tree, side in zip(self.trees, sides, strict=True):
            tree[number % len(tree)].append(Process(tuple(side)))

    def _block(self, loaded: Loaded, watch: Watch, number: int, size: int) -> Block:
        assert self.pace is not None, "the warm-up gave it"
        at = self.tools.clock() - self.begin
        watch.begin()
        times = loaded.time(number, size, self.pace.warmup)
        reason = watch.reason()
        self.wall[number] += times.wall
        self.rates[number] += [] if times.per_second is None else [times.per_second]
        for name, ms in times.parts.items():
            self.parts[number].setdefault(name, []).extend(ms)
        return Block(times.ms, round(at, 3), reason)


@contextmanager
def _failing(where: str) -> Iterator[None]:
    """What ran once and fails now leaves no verdict."""
    try:
        yield
    except KDError as error:
        raise KDError(
            "bench-failed",
            f"the measurement failed midway and gives no verdict: {error.message} ({error.code})",
            where=where,
            fix=error.fix or "measure again",
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
