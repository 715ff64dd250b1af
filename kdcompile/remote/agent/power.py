"""Reads power and GPU memory: INA3221 sensors, NVML or tegrastats."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import subprocess
import threading
import time
from functools import partial
from typing import Any, Callable

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.system import MIB, first_line, read_number

SAMPLE_S = 0.02  # between two looks at the power; what is slower sets its own pace
CHUNK_S = 0.25  # of inferences between two looks at the clock
SM_CLOCK = 1  # NVML_CLOCK_SM


class GpuProcess(ctypes.Structure):
    """nvmlProcessInfo_t, versions 2 and 3."""

    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong),
                ("instance", ctypes.c_uint), ("compute", ctypes.c_uint)]  # fmt: skip


class Nvml:
    """What NVIDIA's management library tells of the GPU of a CUDA context."""

    def __init__(self, cuda: Cuda, lib: Any = None) -> None:
        """Raise OSError where the library is absent or does not know this GPU."""
        self.lib, self.gpu = lib or ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        bus = ctypes.create_string_buffer(32)
        cuda.call("cuDeviceGetPCIBusId", bus, 32, cuda.device)
        handle: tuple[Any, ...] = (bus, ctypes.byref(self.gpu))
        for name, values in (("nvmlInit_v2", ()), ("nvmlDeviceGetHandleByPciBusId_v2", handle)):
            status = getattr(self.lib, name)(*values)
            if status:
                raise OSError(status, f"{name} gives status {status}")

    def value(self, name: str, kind: Any, *which: int) -> int | None:
        """A number of the GPU; None where this one or its driver does not tell."""
        found, function = kind(), getattr(self.lib, name, None)
        status = function(self.gpu, *which, ctypes.byref(found)) if function else 1
        return None if status else int(found.value)

    def power(self) -> Rails:
        """Energy by its counter, which misses nothing between two looks, or else the power."""
        for name, kind, unit in (
            ("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong, "mJ"),
            ("nvmlDeviceGetPowerUsage", ctypes.c_uint, "mW"),
        ):
            if self.value(name, kind) is not None:
                return Rails("NVML", unit, partial(self._rail, name, kind))
        raise OSError("this GPU tells NVML neither energy nor power")

    def _rail(self, name: str, kind: Any) -> dict[str, float]:
        found = self.value(name, kind)
        return {} if found is None else {"GPU": float(found)}

    def facts(self) -> dict[str, str]:
        """Its limits, as nvidia-smi words them; what it does not tell is absent."""
        limit = self.value("nvmlDeviceGetPowerManagementLimit", ctypes.c_uint)
        clock = self.value("nvmlDeviceGetMaxClockInfo", ctypes.c_uint, SM_CLOCK)
        found = {"gpu_power_limit_w": None if limit is None else f"{limit / 1000:.2f}",
                 "gpu_max_clock_mhz": None if clock is None else str(clock)}  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def signals(self) -> dict[str, float]:
        """`gpu_hz` and `gpu_flags`, the mask of what throttles it; absent what it does not tell."""
        mhz = self.value("nvmlDeviceGetClockInfo", ctypes.c_uint, SM_CLOCK)
        flags = self.value("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        found = {"gpu_hz": mhz and mhz * 1e6, "gpu_flags": flags}
        return {name: value for name, value in found.items() if value is not None}

    def process_mb(self) -> float | None:
        """GPU memory of this process."""
        found, count = (GpuProcess * 256)(), ctypes.c_uint(256)
        for version in ("_v3", "_v2"):
            ask = getattr(self.lib, "nvmlDeviceGetComputeRunningProcesses" + version, None)
            if ask and not ask(self.gpu, ctypes.byref(count), found):
                break
        else:
            return None
        all_of_it = found[: count.value]
        mine = [entry for entry in all_of_it if entry.pid == os.getpid()]
        if not mine and len(all_of_it) == 1:  # in a container the ids are the host's
            mine = all_of_it
        used = mine[0].used if mine else 2**64 - 1  # which is NVML's "not available"
        return None if used == 2**64 - 1 else used / MIB


class Rails:
    """Where power is read: milliwatts of each rail, or millijoules that it has used so far."""

    def __init__(self, source: str, unit: str, read: Callable[[], dict[str, float]],
                 close: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """`read` gives values by rail; what it cannot read is absent."""
        self.source, self.unit, self.read, self.close = source, unit, read, close

    def during(self, act: Callable[[], Any]) -> tuple[Any, list[Any]]:
        """What `act` returns, and [seconds, values by rail] of each look meanwhile."""
        found: list[Any] = []
        done, start = threading.Event(), time.perf_counter()

        def look() -> None:
            while not done.is_set():
                try:
                    values = self.read()
                except (OSError, ValueError):  # a sensor may be busy; the next look will tell
                    values = {}
                found.append([time.perf_counter() - start, values])
                done.wait(SAMPLE_S)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            answer = act()
        finally:
            done.set()
            thread.join(5.0)
        return answer, [look for look in list(found) if look[1]]


def ina3221(root: str) -> Rails | None:
    """The rails that a Jetson's INA3221 sensors measure: hwmon since JetPack 5, iio before."""
    drivers, found = os.path.join(root, "sys/bus/i2c/drivers/ina3221*/*"), {}
    for pattern, voltage, current in (
        ("hwmon/hwmon*/in[123]_label", "in%s_input", "curr%s_input"),  # mV and mA
        ("iio*/rail_name_[012]", "in_voltage%s_input", "in_current%s_input"),
    ):
        for path in sorted(glob.glob(os.path.join(drivers, pattern))):
            folder, channel = os.path.split(path)
            number = "".join(re.findall("[0-9]", channel))
            files = [os.path.join(folder, name % number) for name in (voltage, current)]
            label = first_line(path) or "NC"
            if label != "NC" and None not in [read_number(file) for file in files]:
                found[label] = files

    def read() -> dict[str, float]:
        values = {label: [read_number(file) for file in files] for label, files in found.items()}
        return {k: v[0] * v[1] / 1000 for k, v in values.items() if None not in v}  # type: ignore[operator]

    return Rails("INA3221", "mW", read) if found else None


def tegrastats_mw(line: str) -> dict[str, float]:
    """Power by rail in a line of tegrastats, `NAME now/mean` in mW, which newer ones write out."""
    pairs = re.findall(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)", line)
    return {name: float(now) for name, now in pairs}


def tegrastats() -> Rails | None:
    """The rails that tegrastats prints; None where there is none, or it prints no power."""
    if shutil.which("tegrastats") is None:
        return None
    command = ["tegrastats", "--interval", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    stream: Any = process.stdout

    def read() -> dict[str, float]:
        return tegrastats_mw(stream.readline().decode(errors="replace"))

    def close() -> None:
        process.terminate()
        process.wait()
        stream.close()

    if read():
        return Rails("tegrastats", "mW", read, close)
    close()
    return None


def find_power(cuda: Cuda | None, root: str = "/", nvml: Any = None) -> Rails | str:
    """What measures power here: INA3221, NVML or tegrastats; or why nothing does."""
    found, why = ina3221(root), "no GPU"
    if found is None and cuda is not None:
        try:
            found = Nvml(cuda, nvml).power()
        except (OSError, AttributeError, WorkerError) as error:
            why = f"NVML: {error}"
    return found or tegrastats() or f"no INA3221 sensor, no power in tegrastats, {why}"


def run_for(network: Any, arrays: dict[str, Any], mode: str,
          seconds: float) -> tuple[int, float, bool]:  # fmt: skip
    """Inferences one after the other for about so long: their count, seconds, and CUDA graph."""
    count, chunk, start = 0, 1, time.perf_counter()
    while True:
        _, graph = network.time(arrays, 0, chunk, mode)
        count, took = count + chunk, time.perf_counter() - start
        if took >= seconds:
            return count, took, graph
        chunk = max(1, int(min(CHUNK_S, seconds - took) * count / took))
