"""Records how latencies vary where nothing changed: two copies of a network, in turns.

Each process loads the same ONNX twice and times bursts of the one and of the other, A B B A and so
on, as `kdcompile bench` does; so a trace holds the noise of samples, bursts and processes, and what
loading a network twice does to its speed. Every second process of a recording runs beside planted
work on the CPUs (not at a place that is reached over SSH).
"""

import datetime
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdcompile.core.files import write_text
from kdcompile.core.optional import need
from kdcompile.latency.environment import fingerprint
from kdcompile.remote.open import Place, open_place

Sides = dict[str, list[list[int]]]  # by copy: bursts of inferences
NETWORKS = {"small": (16, 64), "large": (32, 96)}  # channels, pixels a side
BURSTS = 20  # of each copy in a process
BURST_MS = 50.0
MOST = 30  # inferences of a burst, so that a trace stays small
WARMUP_MS = 300.0


def network(channels: int, side: int, path: Path) -> Path:
    """Six 3x3 convolutions with random weights, [1, 3, side, side] to [1, 1, side, side]."""
    draw, widths = np.random.default_rng(0), [3, *[channels] * 5, 1]
    nodes, weights, last = [], [], "x"
    for i, (into, out) in enumerate(pairwise(widths)):
        values = draw.normal(0, (into * 9) ** -0.5, (out, into, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        last = f"r{i}"
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, side, side])
        for name, count in (("x", 3), (last, 1))
    ]
    graph = helper.make_graph(nodes, "noise", [ports[0]], [ports[1]], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


def record(
    out: Path,
    kind: str,
    processes: int,
    *,
    runs: int = 1,
    pause_s: float = 0.0,
    via: str | None = None,
    backend: str = "onnxruntime",
    mode: str = "device",
) -> dict[str, Any]:
    """Record one network and write the trace: microseconds by process, copy, burst, inference.

    Args:
        out: the JSON file.
        kind: of `NETWORKS`.
        processes: of each run, one after the other.
        runs, pause_s: how many runs, and the seconds between the end of one and the next.
        via: a place, as for `open_place`; None for ONNX Runtime here with one thread, which other
            work on the machine disturbs least.
        backend, mode: of the place's worker; without a place they are not asked.
    """
    channels, side = NETWORKS[kind]
    x = {"x": np.random.default_rng(1).normal(size=(1, 3, side, side)).astype(np.float32)}
    taken, about = [], fingerprint()
    with tempfile.TemporaryDirectory() as folder:
        path = network(channels, side, Path(folder) / f"{kind}.onnx")
        for number in range(runs * processes):
            if number and number % processes == 0:
                time.sleep(pause_s)
            planted = number % 2 == 1 and not (via or "").startswith("ssh:")
            with busy(planted):
                sides, about = one_process(path, x, via, backend, mode, about)
            load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
            run = number // processes
            taken.append({"run": run, "planted": planted, "load": load, **sides})
            print(f"{kind} run {run}, process {number % processes}, load {load}", file=sys.stderr)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    whole = {
        "about": {
            "recorded": now, "network": kind, "input": [1, 3, side, side], "unit": "us",
            "order": "A B B A", "machine": about,
            "backend": backend if via else "onnxruntime, 1 thread", "mode": mode if via else "wall",
        },
        "processes": taken,
    }  # fmt: skip
    write_text(out, compact(whole))
    return whole


def one_process(
    path: Path,
    x: dict[str, Any],
    via: str | None,
    backend: str,
    mode: str,
    about: dict[str, Any],
) -> tuple[Sides, dict[str, Any]]:
    """The bursts of a new process, here or at a place, and what is known of the machine there."""
    if via is None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(local_process, path, x).result(), about
    with open_place(via, backend) as place:
        return place_process(place, path, x, mode), dict(place.about)


def local_process(path: Path, x: dict[str, Any]) -> Sides:
    """The bursts of two sessions of one thread, in this process."""
    ort = need("onnxruntime", "cpu", "timing")

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    opened = {
        name: ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for name in "ab"
    }

    def burst(name: str, count: int) -> list[float]:
        session, times = opened[name], []
        session.run(None, x)
        for _ in range(count):
            start = time.perf_counter()
            session.run(None, x)
            times.append(1000 * (time.perf_counter() - start))
        return times

    return in_turns(burst)


def place_process(place: Place, path: Path, x: dict[str, Any], mode: str) -> Sides:
    """The bursts of two copies in one worker."""
    engine = place.path("noise.engine")
    place.call("build", onnx=place.put(path), engine=engine, precision="fp32")
    for name in "ab":
        place.call("load", path=engine, name=name, graph=mode == "graph")

    def burst(name: str, count: int) -> list[float]:
        answer = place.time(x, name, iterations=count, warmup=1, mode=mode, samples=True)
        return list(next(v for v in answer["samples"].values() if v))

    return in_turns(burst)


def in_turns(burst: Callable[[str, int], list[float]]) -> Sides:
    """`BURSTS` bursts of each of two copies, A B B A, after a warm-up; in microseconds."""
    first = float(np.median(burst("a", 5)))
    for name in "ab":
        burst(name, max(5, round(WARMUP_MS / 2 / first)))
    count = min(max(5, round(BURST_MS / float(np.median(burst("a", 9))))), MOST)
    sides: Sides = {"a": [], "b": []}
    for turn in range(BURSTS):
        for name in "ab" if turn % 2 == 0 else "ba":
            sides[name].append([round(1000 * ms) for ms in burst(name, count)])
    return sides


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Another process that computes on and off, for as long as the block runs."""
    if not wanted:
        yield
        return
    other = multiprocessing.get_context("spawn").Process(target=_compute, daemon=True)
    other.start()
    try:
        yield
    finally:
        other.terminate()
        other.join()


def _compute() -> None:
    draw = np.random.default_rng()
    while True:
        matrix = draw.normal(size=(160, 160))
        for _ in range(int(draw.integers(20, 200))):
            matrix = np.tanh(matrix @ matrix.T / 160)
        time.sleep(float(draw.uniform(0.05, 0.4)))


def compact(whole: dict[str, Any]) -> str:
    """JSON with one burst a line: small, and a diff shows what changed."""

    def bursts(side: Sequence[Sequence[int]]) -> str:
        return "[\n" + ",\n".join(json.dumps(b, separators=(",", ":")) for b in side) + "]"

    rows = []
    for one in whole["processes"]:
        head = json.dumps({k: v for k, v in one.items() if k not in "ab"})[:-1]
        rows.append(f'{head}, "a": {bursts(one["a"])}, "b": {bursts(one["b"])}}}')
    inner = ",\n".join(rows)
    return f'{{"about": {json.dumps(whole["about"], sort_keys=True)},\n"processes": [\n{inner}]}}\n'
