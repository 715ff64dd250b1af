"""The CUDA driver's own library, called without any package."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.system import MIB


class Cuda:
    """The few calls of the CUDA driver API that running and timing an engine takes.

    What is handed out is held until `free`, so that nothing can be lost unseen.
    """

    def __init__(self) -> None:
        """Open the first GPU in its primary context."""
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise WorkerError("cuda-missing", f"no CUDA driver: {error}") from error
        self.held: dict[int, tuple[str, Any]] = {}
        self._stream: Any = None
        self.call("cuInit", 0)
        device, context, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
        self.device = device
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        # the primary context is the one that TensorRT's runtime API uses
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode(errors="replace")
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        self.memory_mb = total.value // MIB
        self.capability = ".".join(str(self._attribute(n, device)) for n in (75, 76))

    def about(self) -> dict[str, Any]:
        """The GPU, as `hello` tells it."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return {"name": self.name, "compute_capability": self.capability,
                "memory_mb": self.memory_mb, "free_mb": free.value // MIB}  # fmt: skip

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def call(self, function: str, *arguments: Any) -> None:
        """Call a driver function; a status other than 0 is a `cuda-error`."""
        self.check(function, getattr(self.lib, function)(*arguments))

    def check(self, what: str, status: int) -> None:
        """Raise the `cuda-error` that a status other than 0 names."""
        if status:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(status, ctypes.byref(text))
            name = (text.value or b"unknown").decode()
            raise WorkerError("cuda-error", f"{what} failed: {name} ({status})")

    def _hold(self, free: str, handle: Any) -> Any:
        self.held[id(handle)] = (free, handle)
        return handle

    def free(self, *handles: Any) -> None:
        """Give back what was handed out; each exactly once."""
        for handle in handles:
            function, kept = self.held.pop(id(handle))
            self.call(function, kept)

    @property
    def stream(self) -> Any:
        """The stream of all that needs no other, made when it is first used."""
        if self._stream is None:
            self._stream = self.new_stream()
        return self._stream

    def new_stream(self) -> Any:
        """A stream of its own."""
        made = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(made), 1)  # not tied to the default stream
        return self._hold("cuStreamDestroy_v2", made)

    def close(self) -> None:
        """Give back all that is still held."""
        self._stream = None
        self.free(*[handle for _, handle in list(self.held.values())])

    def allocate(self, size: int) -> Any:
        """Device memory of `size` bytes."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return self._hold("cuMemFree_v2", pointer)

    def pinned(self, size: int) -> Any:
        """Host memory of `size` bytes that the GPU reads and writes by itself."""
        pointer = ctypes.c_void_p()
        self.call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return self._hold("cuMemFreeHost", pointer)

    @contextmanager
    def events(self, count: int) -> Iterator[list[Any]]:
        """Timing events, given back afterwards."""
        found: list[Any] = []
        try:
            for _ in range(count):
                made = ctypes.c_void_p()
                self.call("cuEventCreate", ctypes.byref(made), 0)
                found.append(self._hold("cuEventDestroy_v2", made))
            yield found
        finally:
            self.free(*found)

    def capture(self, launch: Callable[[], None], stream: Any) -> Any:
        """What `launch` enqueues on a stream, as a CUDA graph to replay."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, 1)  # 1: of this thread only
        try:
            try:
                launch()
            finally:  # a stream left in capture refuses everything after
                status = self.lib.cuStreamEndCapture(stream, ctypes.byref(graph))
            self.check("cuStreamEndCapture", status)
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_uint64(0))
        except WorkerError as error:
            raise WorkerError("graph-refused", error.message) from error
        finally:
            if graph.value:
                self.call("cuGraphDestroy", graph)
        return self._hold("cuGraphExecDestroy", made)
