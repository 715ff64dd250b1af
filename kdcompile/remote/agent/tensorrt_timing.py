"""Times an engine of TensorRT, with and without copies, queued, and on several streams."""

from __future__ import annotations

import ctypes
import time
from typing import Any, Callable

from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.tensorrt_session import BoundEngine


class TensorRTSession(BoundEngine):
    """An engine that can be timed in each mode of the worker."""

    def time(self, arrays: dict[str, Any], warmup: int, iterations: int,
             mode: str) -> tuple[dict[str, list[float]], bool]:  # fmt: skip
        """Milliseconds of each inference by clock, and whether a CUDA graph ran."""
        self.bind(arrays)
        go, graph = self._once(mode)
        count, copies = warmup + iterations, self._copied(mode)
        if any(copies):
            found = {"end_to_end": self._time_transfers(go, count, *copies)}
        elif mode == "enqueue":
            found = {"device": self._time_queue(go, count)}
        else:
            found = self._time_single(go, count)
        return {clock: times[warmup:] for clock, times in found.items()}, graph

    def _once(self, mode: str) -> tuple[Callable[[], None], bool]:
        """One inference in a mode, without its copies, and whether it is a CUDA graph."""
        graph = mode == "graph" or (mode != "device" and self.wants_graph)
        return (self._replay() if graph else self.launch), graph

    def _copied(self, mode: str) -> list[list[tuple[Any, ...]]]:
        """The copies that a mode counts, before an inference and after it."""
        sides = (("copy_in", self.inputs), ("copy_out", self.outputs))
        return [self._copies(names) if mode in (own, "end_to_end") else [] for own, names in sides]

    def time_streams(self, arrays: dict[str, Any], warmup: int, iterations: int, mode: str,
                     streams: int) -> tuple[dict[str, list[float]], bool, float]:  # fmt: skip
        """With so many inferences in flight: milliseconds of each, and how many a second.

        By events around each with its copies, as the clock sees its end only when its turn comes.
        Contexts take turns, as trtexec's do. The pipeline is full before the first that counts,
        and others follow the last.
        """
        lanes = self._lanes(streams, arrays)
        ways = [lane._once(mode) for lane in lanes]
        first = max(warmup, streams)
        last = first + iterations
        cuda, lib, clock = self.cuda, self.cuda.lib, time.perf_counter
        begun, took, elapsed = [0.0] * (last + streams), [0.0] * last, ctypes.c_float()
        copies = [lane._copied(mode) for lane in lanes]
        with cuda.events(2 * streams) as events:
            for i in range(last + streams):
                lane = i % streams
                stream, (begin, end) = lanes[lane].stream, events[2 * lane : 2 * lane + 2]
                if i >= streams:
                    cuda.call("cuEventSynchronize", end)
                    cuda.call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
                    took[i - streams] = float(elapsed.value)
                begun[i] = clock()
                failed = lib.cuEventRecord(begin, stream)
                for copy in copies[lane][0]:
                    failed = failed or lib.cuMemcpyHtoDAsync_v2(*copy)
                ways[lane][0]()
                for copy in copies[lane][1]:
                    failed = failed or lib.cuMemcpyDtoHAsync_v2(*copy)
                cuda.check("timing", failed or lib.cuEventRecord(end, stream))
            for session in lanes:
                session._wait()
        rate = iterations / (begun[last] - begun[first])
        return {"device": took[first:]}, ways[0][1], rate

    def _lanes(self, count: int, arrays: dict[str, Any]) -> list[TensorRTSession]:
        """This context and others of its engine, with the inputs in buffers of each."""
        self.bind(arrays)
        try:
            while len(self.beside) < count - 1:
                self._add_lane()
            for lane in self.beside[: count - 1]:
                lane.bind(arrays)
        except WorkerError as error:
            if error.code not in ("engine-refused", "shape-refused"):
                raise
            # up to 9, an engine with free sizes has room for one context a profile
            text = f"no {count} contexts of this engine at once: {error.message}"
            raise WorkerError("streams-refused", text) from error
        return [self, *self.beside[: count - 1]]

    def _add_lane(self) -> None:
        stream = self.cuda.new_stream()
        try:
            lane = TensorRTSession(self.backend, self.runtime, self.engine, self.wants_graph,
                                   self.layers, stream)  # fmt: skip
        except Exception:
            self.cuda.free(stream)
            raise
        self.beside.append(lane)

    def _time_single(self, go: Callable[[], None], count: int) -> dict[str, list[float]]:
        """By events around each inference, and by the clock with the wait for it."""
        cuda, lib, stream, clock = self.cuda, self.cuda.lib, self.stream, time.perf_counter
        device, wall, elapsed = [0.0] * count, [0.0] * count, ctypes.c_float()
        ms = ctypes.byref(elapsed)
        with cuda.events(2) as (begin, end):
            for i in range(count):
                start = clock()
                failed = lib.cuEventRecord(begin, stream)
                go()
                failed = failed or lib.cuEventRecord(end, stream) or lib.cuStreamSynchronize(stream)
                wall[i] = 1000 * (clock() - start)
                cuda.check("timing", failed or lib.cuEventElapsedTime(ms, begin, end))
                device[i] = elapsed.value
        return {"device": device, "wall": wall}

    def _time_transfers(self, go: Callable[[], None], count: int, into: list[tuple[Any, ...]],
                        out: list[tuple[Any, ...]]) -> list[float]:  # fmt: skip
        """By the clock: inputs from pinned memory, the inference, outputs to pinned memory."""
        lib, stream, clock = self.cuda.lib, self.stream, time.perf_counter
        times = [0.0] * count
        for i in range(count):
            failed, start = 0, clock()
            for copy in into:
                failed = failed or lib.cuMemcpyHtoDAsync_v2(*copy)
            go()
            for copy in out:
                failed = failed or lib.cuMemcpyDtoHAsync_v2(*copy)
            failed = failed or lib.cuStreamSynchronize(stream)
            times[i] = 1000 * (clock() - start)
            self.cuda.check("timing", failed)
        return times

    def _time_queue(self, go: Callable[[], None], count: int) -> list[float]:
        """By events between inferences that are queued without a wait, as trtexec counts them."""
        cuda, lib, stream = self.cuda, self.cuda.lib, self.stream
        with cuda.events(count + 1) as events:
            failed = lib.cuEventRecord(events[0], stream)
            for event in events[1:]:
                go()
                failed = failed or lib.cuEventRecord(event, stream)
            cuda.check("timing", failed or lib.cuStreamSynchronize(stream))
            times, elapsed = [], ctypes.c_float()
            for i in range(count):
                cuda.call("cuEventElapsedTime", ctypes.byref(elapsed), events[i], events[i + 1])
                times.append(float(elapsed.value))
        return times
