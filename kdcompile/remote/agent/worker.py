"""The worker's operations on one backend and its loaded networks, requested as JSON values."""

from __future__ import annotations

import inspect
import os
import platform
import time
from contextlib import suppress
from functools import partial
from typing import Any, Callable, Dict

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.remote.agent import machine
from kdcompile.remote.agent.errors import WorkerError, to_json
from kdcompile.remote.agent.onnxruntime_backend import (
    OnnxRuntime,
    OnnxRuntimeCuda,
    OnnxRuntimeTensorRT,
)
from kdcompile.remote.agent.power import Nvml, find_power, run_for
from kdcompile.remote.agent.signals import sensors, signals
from kdcompile.remote.agent.system import file_sha256, first_line, platform_name
from kdcompile.remote.agent.tensorrt_backend import TensorRT

PROTOCOL = 3
STREAMS = 32  # the most hardware queues that CUDA lets one process have
BACKENDS: Dict[str, Callable[[], Any]] = {
    "tensorrt": TensorRT, "onnxruntime": OnnxRuntime, "onnxruntime-cuda": OnnxRuntimeCuda,
    "onnxruntime-tensorrt": OnnxRuntimeTensorRT,
}  # fmt: skip


class Worker:
    """One backend and its loaded networks; each operation answers with plain JSON values."""

    root = "/"  # of /proc and /sys
    nvml: Any = None  # the library; None opens the driver's own

    def __init__(self, backend: str) -> None:
        """Open a backend by name."""
        if backend not in BACKENDS:
            raise WorkerError("backend-unknown", f"no backend {backend!r}")
        self.name, self.backend = backend, BACKENDS[backend]()
        self.loaded: dict[str, Any] = {}
        self.operations: dict[str, Callable[..., dict[str, Any]]] = {
            "hello": self.hello, "signals": self.signals, "stat": self.stat, "remove": self.remove,
            "build": self.backend.build, "load": self.load, "run": self.run, "time": self.time,
            "profile": self.profile, "power": self.power, "memory": self.memory,
            "unload": self.unload, "quit": self.quit,
        }  # fmt: skip

    def hello(self) -> dict[str, Any]:
        """Versions, machine and GPU: what a measurement here depends on."""
        root, memory = self.root, os.path.join(self.root, "proc/meminfo")
        return {
            "protocol": PROTOCOL, "backend": self.name, "backend_version": self.backend.version,
            "python": platform.python_version(), "numpy": np.__version__,
            "platform": platform_name(),
            "module": first_line(os.path.join(root, "proc/device-tree/model")),
            "l4t": first_line(os.path.join(root, "etc/nv_tegra_release")),
            "power_mode": machine.power_mode(),
            "machine": {**machine.facts(root), **self._nvml("facts")},
            "clocks": machine.clocks_hz(os.path.join(root, "sys")),
            "memory_mb": machine.memory_mb(memory), "disk_mb": machine.free_disk_mb(),
            "modes": list(self.backend.modes), "streams": STREAMS,
            **self.backend.about(),
        }  # fmt: skip

    def signals(self, beside: Any = (), with_sensors: bool = True) -> dict[str, Any]:
        """Counters, clocks and throttling now (`signals` above); what nothing tells is absent.

        Args:
            beside: ids of further processes of this machine that take part in measuring.
            with_sensors: temperatures, load and power (`sensors`) too, which take some ms.
        """
        found = signals(self.root, ["self", *map(int, beside)], machine.affinity())
        more = sensors(self.root) if with_sensors else {}
        return {**more, **found, **self._nvml("signals")}

    def _nvml(self, method: str) -> dict[str, Any]:
        """What NVML tells of the backend's GPU; nothing where there is none of either."""
        found: dict[str, Any] = {}
        if self.backend.cuda is not None:
            with suppress(OSError, AttributeError, WorkerError):
                found = getattr(Nvml(self.backend.cuda, self.nvml), method)()
        return found

    def stat(self, path: str) -> dict[str, Any]:
        """Whether a file is there, its size and its SHA-256."""
        if not os.path.isfile(path):
            return {"exists": False, "bytes": 0, "sha256": None}
        return {"exists": True, "bytes": os.path.getsize(path), "sha256": file_sha256(path)}

    def remove(self, path: str) -> dict[str, Any]:
        """Delete a file, if it is there."""
        if os.path.lexists(path):
            os.remove(path)
        return {}

    def unload(self, name: str) -> dict[str, Any]:
        """Free a loaded network."""
        self._network(name).release()
        del self.loaded[name]
        return {}

    def quit(self) -> dict[str, Any]:
        """Free everything."""
        while self.loaded:
            self.loaded.popitem()[1].release()
        self.backend.close()
        return {}

    def load(self, path: str, name: str = "main", graph: bool = False,
             expected: Any = None, threads: int = 0) -> dict[str, Any]:  # fmt: skip
        """Load a built network under a name, in place of one that had it.

        With `graph` it runs as a CUDA graph, with `threads` on so many of a CPU. `expected` stands
        in for a lost record: its `sha256`, `tensorrt` or `onnxruntime`, `compute_capability` and
        `platform`.
        """
        if threads and self.backend.cuda:
            raise WorkerError("mode-refused", f"{self.name} runs on no threads of a CPU")
        more = {"threads": threads} if threads else {}
        fresh = self.backend.load(path, graph, expected, **more)
        if name in self.loaded:
            self.loaded.pop(name).release()
        self.loaded[name] = fresh
        return dict(fresh.about(), name=name)

    def _network(self, name: str) -> Any:
        if name not in self.loaded:
            there = ", ".join(self.loaded) or "nothing"
            raise WorkerError("not-loaded", f"no network is loaded as {name!r}; {there} is")
        return self.loaded[name]

    def _ready(self, name: str, path: str) -> tuple[Any, dict[str, Any]]:
        network = self._network(name)
        with np.load(path, allow_pickle=False) as arrays:
            return network, {key: arrays[key] for key in arrays.files}

    def run(self, inputs: str, outputs: str, name: str = "main") -> dict[str, Any]:
        """Arrays from one npz file, by input name, to another, by output name."""
        network, arrays = self._ready(name, inputs)
        found = network.run(arrays)
        np.savez(outputs, **found)
        return {"outputs": {key: list(value.shape) for key, value in found.items()}}

    def time(self, inputs: str, iterations: int = 50, warmup: int = 10, name: str = "main",
             mode: str = "device", samples: bool = False,
             streams: int = 1) -> dict[str, Any]:  # fmt: skip
        """Latency in milliseconds of inferences, one after the other or several in flight.

        Args:
            inputs: npz file.
            iterations: inferences that count.
            warmup: inferences before them.
            name: of the loaded network.
            mode: device (inputs on the GPU, events around each), graph (the same as a CUDA graph),
                end_to_end (copies from and to pinned memory, by the clock), copy_in or copy_out
                (one of the two) or enqueue (queued one after the other, events between them).
            samples: answer with each inference too.
            streams: inferences in flight; above 1 each has a context, or session, of its own.

        Returns:
            `device`, `wall` and `end_to_end`, null where the mode has no such clock; with several
            streams `per_second`, inferences of all together.
        """
        if iterations < 1 or warmup < 0:
            raise WorkerError("request-invalid", "needs iterations >= 1 and warmup >= 0")
        if mode not in self.backend.modes:
            able = ", ".join(self.backend.modes)
            raise WorkerError("mode-refused", f"{self.name} times by {able}, not {mode!r}")
        if not 1 <= streams <= STREAMS or (streams > 1 and mode == "enqueue"):
            text = f"{mode} on {streams} streams; enqueue has one, the others 1 to {STREAMS}"
            raise WorkerError("mode-refused", text)
        network, arrays = self._ready(name, inputs)
        more: dict[str, Any] = {}
        if streams == 1:
            times, graph = network.time(arrays, warmup, iterations, mode)
        else:
            found = network.time_streams(arrays, warmup, iterations, mode, streams)
            times, graph, more["per_second"] = found
        clocks = ("device", "wall", "end_to_end")
        answer = {clock: summary(times.get(clock, [])) for clock in clocks}
        if samples:
            more["samples"] = times
        return {"mode": mode, "graph": graph, **answer, **more}

    def profile(self, inputs: str, iterations: int = 20, name: str = "main") -> dict[str, Any]:
        """Mean milliseconds of each layer; the total is more than an unprofiled inference takes."""
        if iterations < 1:
            raise WorkerError("request-invalid", "needs iterations >= 1")
        network, arrays = self._ready(name, inputs)
        layers = network.profile(arrays, iterations)
        return {"layers": layers, "total_ms": sum(layer["ms"] for layer in layers)}

    def power(self, inputs: str, seconds: float = 5.0, idle_s: float = 2.0, name: str = "main",
              mode: str = "device") -> dict[str, Any]:  # fmt: skip
        """Readings of the power while nothing runs, then while inferences follow each other.

        Args:
            inputs: npz file.
            seconds: of inferences; a fifth more warms up.
            idle_s: before them, with the network loaded.
            name: of the loaded network.
            mode: of `time`.

        Returns:
            `unavailable`: why nothing tells; or `source`, `unit` (mW, or mJ so far), `graph`,
            `idle` and `busy`: `samples` ([seconds, {rail: value}]), and of busy its `seconds` and
            `inferences`.
        """
        if not 0 < seconds <= 300 or not 0 < idle_s <= 60:
            raise WorkerError("request-invalid", "needs 0 < seconds <= 300 and 0 < idle_s <= 60")
        if mode not in self.backend.modes:
            able = ", ".join(self.backend.modes)
            raise WorkerError("mode-refused", f"{self.name} runs by {able}, not {mode!r}")
        network, arrays = self._ready(name, inputs)
        rails = find_power(self.backend.cuda, self.root, self.nvml)
        if isinstance(rails, str):
            return {"unavailable": rails}
        try:
            _, idle = rails.during(partial(time.sleep, idle_s))
            run_for(network, arrays, mode, seconds / 5)
            (count, took, graph), busy = rails.during(
                partial(run_for, network, arrays, mode, seconds)
            )
        finally:
            rails.close()
        return {"source": rails.source, "unit": rails.unit, "mode": mode, "graph": graph,
                "idle": {"samples": idle},
                "busy": {"samples": busy, "seconds": took, "inferences": count}}  # fmt: skip

    def memory(self, restart: bool = False) -> dict[str, Any]:
        """Memory now, in MiB; what nothing tells is null.

        Args:
            restart: forget the highest resident size so far, where the kernel lets it.

        Returns:
            `resident_mb` and `peak_mb` of this process, `restarted`; `available_mb` of the machine;
            `unified`, whether its GPU uses the same; `gpu_mb` of this process on the GPU, and
            `gpu_used_mb` of all.
        """
        restarted, process = False, os.path.join(self.root, "proc/self")
        if restart:
            with suppress(OSError), open(os.path.join(process, "clear_refs"), "w") as stream:
                stream.write("5")  # proc(5): the peak becomes the size of now
                stream.flush()  # here, where a refusal is seen
                restarted = True
        cuda, gpu, used, unified = self.backend.cuda, None, None, False
        if cuda is not None:
            told = cuda.about()
            used = told["memory_mb"] - told["free_mb"]
            unified = bool(cuda._attribute(18, cuda.device))  # integrated
            with suppress(OSError, AttributeError, WorkerError):  # told by none: null
                gpu = Nvml(cuda, self.nvml).process_mb()
        resident, peak = machine.process_sizes_mb(os.path.join(process, "status"))
        return {"resident_mb": resident, "peak_mb": peak, "restarted": restarted,
                "available_mb": machine.memory_mb(os.path.join(self.root, "proc/meminfo"))["free"],
                "unified": unified, "gpu_mb": gpu, "gpu_used_mb": used}  # fmt: skip

    def answer(self, request: Any) -> dict[str, Any]:
        """One request to its answer; no failure of an operation leaves as an exception."""
        known = request.get("id") if isinstance(request, dict) else None
        try:
            return {"id": known, "ok": self._dispatch(request)}
        except KDError as error:
            failure = error
        except OSError as error:
            failure = WorkerError("file", f"{error.strerror}: {error.filename}")
        except Exception as error:  # a library's own failure must not end the conversation
            failure = WorkerError("internal", f"{type(error).__name__}: {error}")
        return {"id": known, "error": to_json(failure)}

    def _dispatch(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict) or request.get("op") not in self.operations:
            raise WorkerError("request-invalid", f"no such operation in {request!r:.200}")
        operation = self.operations[request["op"]]
        values = {k: v for k, v in request.items() if k not in ("id", "op")}
        try:
            inspect.signature(operation).bind(**values)
        except TypeError as error:
            raise WorkerError("request-invalid", f"{request['op']}: {error}") from error
        return operation(**values)


def summary(times: list[float]) -> dict[str, Any] | None:
    """Percentiles in milliseconds; None of no times."""
    if not times:
        return None
    p50, p90, p99 = (float(x) for x in np.percentile(times, [50, 90, 99]))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "n": len(times)}
