"""Latencies of two sides that do not differ, by kinds of noise: recorded, synthetic, MLPerf's.

A `Noise` draws one comparison: candidate and reference as runs of builds of processes, each an
array [blocks, inferences] around 1 ms. Where the two take turns, inferences come in the order
A B B A, and whatever drifts, drifts through both.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr

from kdcompile.stats.samples import Block, Build, Process, Run, Samples

Floats = NDArray[np.float64]
Random = np.random.Generator
Side = list[list[list[Floats]]]
Noise = Callable[[Random], tuple[Side, Side]]
PROCESSES, BLOCKS, INFERENCES = 3, 20, 20  # what `kdcompile bench` takes by default, or fewer
HERE = Path(__file__).parent / "noise"
# (share, ms). MLPerf inference results v3.1 Orin_NX_TRT_MaxQ and v3.0 Orin_TRT_MaxQ, ResNet-50,
# SingleStream; their logs give p50 to p99.9 and the extremes. What they do not give is marked.
ORIN_NX_MAXQ = (
    (0, 1.37),  # not given
    (0.5, 1.397), (0.9, 1.419), (0.95, 1.653), (0.99, 1.689), (0.999, 2.031), (1, 9.456),
)  # fmt: skip
AGX_ORIN_MAXQ = (
    (0, 0.826),
    (0.01, 1.45),  # not given
    (0.5, 1.578), (0.9, 1.638), (0.99, 2.001),
    (0.999, 2.6), (0.9999, 10.0),  # not given
    (1, 147.0),
)  # fmt: skip


def samples(side: Side, name: str, factor: float = 1.0, day: int | None = None) -> Samples:
    """As they would have been measured, `factor` times as slow.

    All at once, or each run on a day of its own from `day` on.
    """

    def process(times: Floats) -> Process:
        return Process(tuple(Block(tuple(row), 0.0) for row in (times * factor).tolist()))

    runs = tuple(
        Run(
            f"2026-01-{1 if day is None else day + number:02}T00:00:00+00:00",
            {},
            {},
            tuple(Build(f"{name}{i}", tuple(map(process, build))) for i, build in enumerate(run)),
        )
        for number, run in enumerate(side)
    )
    return Samples(name, name, runs)


def recorded(name: str) -> Noise:
    """Processes of a trace, each the other way round by chance, from a block by chance."""
    processes = _trace(name)["processes"]

    def draw(random: Random) -> tuple[Side, Side]:
        chosen = random.choice(len(processes), PROCESSES, replace=False)
        sides: list[list[Floats]] = [[], []]
        for index in chosen:
            first, second = random.permutation(2)
            arrays = [_ms(processes[index][side]) for side in "ab"]
            start = int(random.integers(len(arrays[0])))
            scale = float(np.median(arrays[0]))
            for side, taken in zip(sides, (arrays[first], arrays[second]), strict=True):
                side.append(np.roll(taken, start, axis=0)[:BLOCKS] / scale)
        return [[sides[0]]], [[sides[1]]]

    return draw


def recorded_runs(name: str, reference_runs: int = 3) -> Noise:
    """Runs of a trace minutes apart: one against `reference_runs` others."""
    trace = _trace(name)["processes"]
    runs = [[p for p in trace if p["run"] == r] for r in sorted({p["run"] for p in trace})]
    scale = float(np.median([np.median(_ms(p["a"])) for p in trace]))

    def draw(random: Random) -> tuple[Side, Side]:
        chosen = random.choice(len(runs), reference_runs + 1, replace=False)
        side = [[[_ms(p["ab"[random.integers(2)]]) / scale for p in runs[i]]] for i in chosen]
        return side[:1], side[1:]

    return draw


def in_turns(
    course: Callable[[Random, int], Floats], process_sd: tuple[float, float], *, builds: int = 1,
    build_sd: float = 0.0, processes: int = PROCESSES,
) -> Noise:  # fmt: skip
    """Two sides that share a course of time in each process.

    Args:
        course: latencies of so many inferences one after the other.
        process_sd: of the log ratio of the two sides from process to process, in each comparison
            another between these two.
        builds: of each side, whose log latencies vary by `build_sd`, each independently.
        processes: of each build.
    """

    def draw(random: Random) -> tuple[Side, Side]:
        ours: list[list[Floats]] = []
        theirs: list[list[Floats]] = []
        sd = random.uniform(*process_sd)
        for _ in range(builds):
            effects = random.normal(0, build_sd, 2)
            pair = [_process(random, course, sd, effects) for _ in range(processes)]
            ours.append([a for a, _ in pair])
            theirs.append([b for _, b in pair])
        return [ours], [theirs]

    return draw


def apart(
    course: Callable[[Random, int], Floats], run_sd: float, process_sd: float, against: int = 3
) -> Noise:
    """One run against some, whose log latencies vary by `run_sd`, and by process in each."""

    def run(random: Random) -> list[list[Floats]]:
        level = random.normal(0, run_sd)
        effects = np.exp(level + random.normal(0, process_sd, PROCESSES))
        size = BLOCKS, INFERENCES
        return [[course(random, BLOCKS * INFERENCES).reshape(size) * e for e in effects]]

    def draw(random: Random) -> tuple[Side, Side]:
        return [run(random)], [run(random) for _ in range(against)]

    return draw


def drift(random: Random, count: int) -> Floats:
    """Normal noise of 1 % on a wandering level, which also rises or falls by up to 10 %."""
    walk = np.cumsum(random.normal(0, 0.05 / count**0.5, count))
    line = random.uniform(-0.1, 0.1) * np.linspace(0, 1, count)
    level: Floats = np.exp(walk + line + random.normal(0, 0.01, count))
    return level


def bursts(random: Random, count: int) -> Floats:
    """Normal noise of 0.7 %, up to five stretches 1.05 to 2 times as slow, and lone spikes."""
    times: Floats = np.exp(random.normal(0, 0.007, count))
    for _ in range(int(random.integers(6))):
        start, length = int(random.integers(count)), int(random.exponential(count / 25)) + 1
        times[start : start + length] *= random.uniform(1.05, 2.0)
    spikes = random.random(count) < 0.01
    return np.where(spikes, times * random.uniform(1.5, 8.0, count), times)


def mixture(points: Sequence[tuple[float, float]]) -> Callable[[Random, int], Floats]:
    """Latencies with these percentiles, whose slow ones come in clusters.

    A Gaussian copula: half of the variance is a first-order autoregression, 0.98 from one inference
    to the next; between the percentiles the logarithm is interpolated.
    """
    shares, values = np.array(points).T
    values = np.log(values / np.interp(0.5, shares, values))

    def course(random: Random, count: int) -> Floats:
        keep = 0.98
        shocks = random.normal(0, (1 - keep**2) ** 0.5, count)
        shocks[0] = random.normal()
        slow = lfilter([1.0], [1.0, -keep], shocks)
        level = (slow + random.normal(size=count)) / 2**0.5
        made: Floats = np.exp(np.interp(ndtr(level), shares, values))
        return made

    return course


def _process(
    random: Random, course: Callable[[Random, int], Floats], sd: float, effects: Floats
) -> tuple[Floats, Floats]:
    """Two sides [blocks, inferences] that alternate along one course of time."""
    times = course(random, 2 * BLOCKS * INFERENCES).reshape(BLOCKS, 2, INFERENCES)
    times[1::2] = times[1::2, ::-1].copy()
    half = random.normal(0, sd) / 2
    ours, theirs = np.exp(effects + np.array([half, -half]))
    return times[:, 0] * ours, times[:, 1] * theirs


def _trace(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return found


def _ms(bursts: Sequence[Sequence[int]]) -> Floats:
    return np.array(bursts, dtype=np.float64) / 1000
