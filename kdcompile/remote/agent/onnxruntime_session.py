"""A network timed by the wall clock, and a session of ONNX Runtime, called like an engine."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import time
from functools import partial
from typing import Any, Callable

import numpy as np

from kdcompile.remote.agent.engine_record import check_inputs
from kdcompile.remote.agent.errors import WorkerError

CPU_PROVIDER = "CPUExecutionProvider"
ORT_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64",
             "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
             "tensor(double)": "float64", "tensor(bool)": "bool"}  # fmt: skip
# what computes sizes is left to the CPU by every provider
OF_SIZES = {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Floor", "Gather", "Mul",
            "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze",
            "Where"}  # fmt: skip


class WallClockSession:
    """A network that is timed by the wall clock, with the same calls as an engine.

    A backend has its own `tensors`, `run`, `_once`, which makes one inference a call, and
    `profile`.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        """Open the network with `make`."""
        self.make, self.session = make, make()
        self.beside: list[Any] = []  # more sessions, for more streams
        self.ports = self.tensors()
        kinds = {name: port["dtype"] for name, port in self.ports["inputs"].items()}
        self.types = {n: np.dtype(kind if kind.isalnum() else "O") for n, kind in kinds.items()}

    def tensors(self) -> dict[str, Any]:
        """`inputs` and `outputs`: the `dtype` and `shape` of each by name; a free size is -1."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """Inputs and outputs; nothing tells what memory it will take."""
        return {"device_memory_mb": None, **self.ports}

    def _feeds(self, arrays: dict[str, Any]) -> dict[str, Any]:
        wanted = check_inputs(arrays, self.types, list(self.types))
        for name, shape in wanted.items():
            size = tuple(self.ports["inputs"][name]["shape"])
            pairs = zip(shape, size)  # Python 3.8
            if len(shape) != len(size) or any(n not in (-1, a) for a, n in pairs):
                raise WorkerError("shape-refused", f"{name} of {shape}; the network has {size}")
        return {n: np.ascontiguousarray(arrays[n], kind) for n, kind in self.types.items()}

    def _check(self, feeds: dict[str, Any]) -> None:
        """Refuse to time what does not run where it should."""

    def _once(self, session: Any, feeds: dict[str, Any], mode: str) -> Callable[[], Any]:
        raise NotImplementedError

    def time(self, arrays: dict[str, Any], warmup: int, iterations: int,
             mode: str) -> tuple[dict[str, list[float]], bool]:  # fmt: skip
        """Milliseconds of each inference by the clock; there is no device clock to ask."""
        feeds, times, clock = self._feeds(arrays), [], time.perf_counter
        self._check(feeds)
        go = self._once(self.session, feeds, mode)
        for _ in range(warmup + iterations):
            start = clock()
            go()
            times.append(1000 * (clock() - start))
        return {"wall" if mode == "device" else "end_to_end": times[warmup:]}, False

    def time_streams(self, arrays: dict[str, Any], warmup: int, iterations: int, mode: str,
                     streams: int) -> tuple[dict[str, list[float]], bool, float]:  # fmt: skip
        """With so many inferences in flight: milliseconds of each, and how many a second.

        Each has a session and a thread. All are busy before the first that counts, and others
        follow the last.
        """
        feeds = self._feeds(arrays)
        self._check(feeds)
        while len(self.beside) < streams - 1:
            self.beside.append(self.make())
        sessions = [self.session, *self.beside[: streams - 1]]
        first = max(warmup, streams)
        last = first + iterations
        begun, took = ([0.0] * (last + streams) for _ in range(2))
        turns, clock, failures = iter(range(last + streams)), time.perf_counter, []
        ready = threading.Barrier(streams)

        def work(go: Callable[[], Any]) -> None:
            ready.wait()
            try:
                for n in turns:  # of all threads: whoever is free takes the next
                    begun[n] = clock()
                    go()
                    took[n] = 1000 * (clock() - begun[n])
            except Exception as error:  # raised below, in the thread that answers
                failures.append(error)

        ways = [self._once(session, feeds, mode) for session in sessions]
        threads = [threading.Thread(target=work, args=(go,), daemon=True) for go in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        rate = iterations / (begun[last] - begun[first])
        return {"wall" if mode == "device" else "end_to_end": took[first:last]}, False, rate

    def release(self) -> None:
        """Let the other sessions go."""
        self.beside = []


class OnnxRuntimeSession(WallClockSession):
    """A session of ONNX Runtime."""

    def __init__(self, backend: Any, make: Callable[..., Any], nodes: set[str]) -> None:
        """`make` opens the network, with a file prefix for the trace of a profile."""
        super().__init__(make)
        self.backend, self.nodes, self.is_checked = backend, nodes, False

    def tensors(self) -> dict[str, Any]:
        """Inputs and outputs."""
        sides = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
        return {side: {i.name: {"dtype": ORT_NUMPY.get(i.type, i.type),
                                "shape": [n if isinstance(n, int) else -1 for n in i.shape]}
                       for i in ports} for side, ports in sides.items()}  # fmt: skip

    def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        return dict(zip(self.ports["outputs"], self.session.run(None, self._feeds(arrays))))

    def _once(self, session: Any, feeds: dict[str, Any], mode: str) -> Callable[[], Any]:
        """One inference in a mode: what is not copied lies where the provider computes."""
        if mode == "end_to_end":
            return partial(session.run, None, feeds)
        binding = self._bound(session, feeds)
        go = partial(session.run_with_iobinding, binding)

        def copy_in() -> None:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            go()

        def copy_out() -> None:
            go()
            binding.copy_outputs_to_cpu()

        return {"copy_in": copy_in, "copy_out": copy_out}.get(mode, go)

    def _bound(self, session: Any, feeds: dict[str, Any]) -> Any:
        """Inputs and outputs where the provider computes."""
        place = "cuda" if self.backend.cuda else "cpu"
        binding = session.io_binding()
        for name, array in feeds.items():
            value = self.backend.ort.OrtValue.ortvalue_from_numpy(array, place, 0)
            binding.bind_ortvalue_input(name, value)
        for port in session.get_outputs():
            binding.bind_output(port.name, place)
        return binding

    def _check(self, feeds: dict[str, Any]) -> None:
        """Refuse a latency that is partly the CPU's: nodes move there one by one, and untold."""
        wanted = self.backend.provider
        if self.is_checked or wanted == CPU_PROVIDER:
            return
        for name, ((_, provider, operator), *_) in self._trace(feeds, 1).items():
            if provider != wanted and operator not in OF_SIZES:
                text = f"{operator} {name} runs on {provider}, not {wanted}"
                raise WorkerError("provider-fallback", text)
        self.is_checked = True

    def _trace(self, feeds: dict[str, Any], count: int) -> dict[str, list[tuple[float, Any, Any]]]:
        """(ms, provider, operator) of each node in each inference, as ONNX Runtime tells them."""
        with tempfile.TemporaryDirectory() as folder:
            session = self.make(os.path.join(folder, "trace"))
            for _ in range(count):
                session.run(None, feeds)
            with open(session.end_profiling(), encoding="utf-8") as stream:
                events = json.load(stream)
        found: dict[str, list[tuple[float, Any, Any]]] = {}
        for event in events:
            name, kind, more = event["name"], "_kernel_time", event.get("args", {})
            if event.get("cat") == "Node" and name.endswith(kind):
                entry = (event["dur"] / 1000, more.get("provider"), more.get("op_name"))
                found.setdefault(name[: -len(kind)], []).append(entry)
        return found

    def profile(self, arrays: dict[str, Any], iterations: int) -> list[dict[str, Any]]:
        """Mean milliseconds of each node in one inference, from ONNX Runtime's own trace."""
        found = self._trace(self._feeds(arrays), iterations + 1)  # the first one warms up
        return [{"name": name, "ms": sum(ms for ms, *_ in calls[1:]) / iterations,
                 "precision": None, "onnx": self._nodes(name), "provider": calls[0][1]}
                for name, calls in found.items()]  # fmt: skip

    def _nodes(self, name: str) -> list[str] | None:
        """The ONNX nodes in a fused or transformed node's name."""
        parts = [re.sub("_nchwc$", "", part) for part in name.split(" ")]
        return [part for part in parts if part in self.nodes] or None
