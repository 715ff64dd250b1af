"""The worker's `power` and `memory`, on played trees of `/sys` and `/proc` and a played NVML."""

import ctypes
import os
import shutil
import threading
import types

import numpy as np
import played_tensorrt as played
import pytest

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.power import Nvml, Rails, find_power, ina3221, tegrastats_mw
from kdcompile.remote.agent.worker import Worker

MIB = 1 << 20
ORIN = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
XAVIER = "sys/bus/i2c/drivers/ina3221x/1-00{}/iio:device{}"
STATUS = "Name:\tpython3\nVmPeak:\t  900000 kB\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n"


def put(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def orin(tmp_path):
    """An Orin NX since JetPack 5: one sensor with three rails, and the sum that is none."""
    rails = [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 4960, 250)]
    for number, (label, millivolts, milliamperes) in enumerate(rails, 1):
        put(tmp_path, f"{ORIN}/in{number}_label", label)
        put(tmp_path, f"{ORIN}/in{number}_input", millivolts)
        put(tmp_path, f"{ORIN}/curr{number}_input", milliamperes)
    put(tmp_path, f"{ORIN}/in7_label", "Sum of shunt voltages")
    put(tmp_path, f"{ORIN}/in7_input", 99999)
    return tmp_path


@pytest.fixture
def xavier(tmp_path):
    """An AGX Xavier of JetPack 4: two sensors with three rails each."""
    for sensor, labels in enumerate((("GPU", "CPU", "SOC"), ("CV", "VDDRQ", "SYS5V"))):
        folder = XAVIER.format(40 + sensor, sensor)
        for number, label in enumerate(labels):
            put(tmp_path, f"{folder}/rail_name_{number}", label)
            put(tmp_path, f"{folder}/in_voltage{number}_input", 19000)
            put(tmp_path, f"{folder}/in_current{number}_input", 100 * (3 * sensor + number))
    return tmp_path


class PlayedNvml:
    """`numbers` by function; `processes` of the GPU as (pid, bytes)."""

    def __init__(self, numbers=None, processes=(), version="_v3"):
        self.numbers, self.processes, self.version = dict(numbers or {}), list(processes), version
        self.asked_for = None

    def __getattr__(self, name):
        if name == f"nvmlDeviceGetComputeRunningProcesses{self.version}":
            return self._processes
        if name in ("nvmlInit_v2", "nvmlDeviceGetHandleByPciBusId_v2"):
            return lambda *values: self._start(*values)
        if name in self.numbers:
            return lambda gpu, found: self._number(name, found)
        raise AttributeError(name)

    def _start(self, *values):
        if values:
            self.asked_for = values[0].value
        return 0

    def _number(self, name, found):
        value = self.numbers[name]
        if value is None:
            return 3  # not supported
        if callable(value):
            value = value()
        found._obj.value = value
        return 0

    def _processes(self, gpu, count, found):
        for entry, (pid, used) in zip(found, self.processes, strict=False):
            entry.pid, entry.used = pid, used
        count._obj.value = len(self.processes)
        return 0


class Driver(played.Driver):
    """The played driver, of a GPU in a slot that is a Jetson's or is not."""

    unified = False

    def _cuDeviceGetAttribute(self, value, number, device):  # noqa: N802
        if number == 18:
            value._obj.value = int(self.unified)
        else:
            super()._cuDeviceGetAttribute(value, number, device)

    def _cuDeviceGetPCIBusId(self, text, size, device):  # noqa: N802
        text.value = b"0000:17:00.0"


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver("9.0"))
    found = Cuda()
    monkeypatch.undo()
    return found


class Network:
    """Runs when it is timed; nothing more."""

    def __init__(self):
        self.runs = 0

    def time(self, arrays, warmup, iterations, mode):
        self.runs += warmup + iterations
        return {"device": [1.0] * iterations}, mode == "graph"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """`served(cuda, nvml)` -> a worker with a network, at `tmp_path` as the root, and an asker."""
    monkeypatch.setattr(shutil, "which", lambda name: None)

    def make(cuda=None, nvml=None):
        made = Worker("onnxruntime")
        made.backend = types.SimpleNamespace(cuda=cuda, modes=("device", "graph"))
        made.root, made.nvml, made.loaded = str(tmp_path), nvml, {"main": Network()}
        np.savez(tmp_path / "in.npz", image=np.zeros(3, np.float32))
        values = {"inputs": str(tmp_path / "in.npz"), "seconds": 0.01, "idle_s": 0.01}
        return made, lambda **more: made.answer({"id": 1, "op": "power", **values, **more})

    return make


def test_rails_of_an_orin(orin):
    rails = ina3221(str(orin))
    assert (rails.source, rails.unit) == ("INA3221", "mW")
    assert rails.read() == {"VDD_IN": 6000.0, "VDD_CPU_GPU_CV": 2000.0, "VDD_SOC": 1240.0}


def test_rails_of_a_xavier(xavier):
    found = ina3221(str(xavier)).read()
    assert found == {
        "GPU": 0.0, "CPU": 1900.0, "SOC": 3800.0, "CV": 5700.0, "VDDRQ": 7600.0, "SYS5V": 9500.0,
    }  # fmt: skip


def test_a_rail_that_is_not_connected_or_cannot_be_read_is_none(orin):
    put(orin, f"{ORIN}/in2_label", "NC")
    (orin / f"{ORIN}/curr3_input").unlink()
    rails = ina3221(str(orin))
    assert rails.read() == {"VDD_IN": 6000.0}
    (orin / f"{ORIN}/curr1_input").unlink()  # a sensor that is busy
    assert rails.read() == {}
    assert ina3221(str(orin)) is None


@pytest.mark.parametrize(
    ("line", "rails"),
    [
        (
            "11-27-2026 RAM 2448/15817MB (lfb 2x4MB) SWAP 0/7908MB CPU [1%@729,off] EMC_FREQ 0% "
            "cpu@48C VDD_IN 4180mW/4175mW VDD_CPU_GPU_CV 674mW/674mW VDD_SOC 1281mW/1280mW",
            {"VDD_IN": 4180.0, "VDD_CPU_GPU_CV": 674.0, "VDD_SOC": 1281.0},
        ),
        (
            "RAM 1903/31925MB (lfb 7060x4MB) CPU [2%@1190] MTS fg 0% GR3D_FREQ 0% AO@31.5C "
            "GPU 30/20 CPU 311/300 SOC 932/931 CV 0/0 VDDRQ 155/155 SYS5V 1365/1365",
            {"GPU": 30.0, "CPU": 311.0, "SOC": 932.0, "CV": 0.0, "VDDRQ": 155.0, "SYS5V": 1365.0},
        ),
        ("RAM 1903/31925MB (lfb 7060x4MB) SWAP 0/15962MB CPU [2%@1190]", {}),
    ],
)
def test_lines_of_tegrastats(line, rails):
    assert tegrastats_mw(line) == rails


@pytest.mark.parametrize(("line", "found"), [("VDD_IN 4180mW/4175mW", True), ("RAM 1/2MB", False)])
def test_tegrastats_is_asked_last_and_ended(tmp_path, monkeypatch, line, found):
    script = tmp_path / "bin" / "tegrastats"
    put(tmp_path, "bin/tegrastats", f"#!/bin/sh\nwhile echo '{line}'; do sleep 0.01; done")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    rails = find_power(None, str(tmp_path / "empty"))
    if not found:
        assert rails == "no INA3221 sensor, no power in tegrastats, no GPU"
        return
    assert (rails.source, rails.unit, rails.read()) == ("tegrastats", "mW", {"VDD_IN": 4180.0})
    rails.close()
    with pytest.raises(ValueError, match="closed"):
        rails.read()


def test_a_counter_of_energy_goes_before_the_power(cuda):
    numbers = {"nvmlDeviceGetTotalEnergyConsumption": 1 << 40, "nvmlDeviceGetPowerUsage": 70_000}
    lib = PlayedNvml(numbers)
    rails = Nvml(cuda, lib).power()
    assert (rails.source, rails.unit, rails.read()) == ("NVML", "mJ", {"GPU": float(1 << 40)})
    assert lib.asked_for == b"0000:17:00.0"  # the GPU that CUDA has, however NVML counts them
    lib.numbers["nvmlDeviceGetTotalEnergyConsumption"] = None
    rails = Nvml(cuda, lib).power()
    assert (rails.unit, rails.read()) == ("mW", {"GPU": 70_000.0})
    lib.numbers["nvmlDeviceGetPowerUsage"] = None
    assert rails.read() == {}


@pytest.mark.parametrize(
    ("lib", "why"),
    [
        (PlayedNvml({"nvmlDeviceGetPowerUsage": None}), "neither energy nor power"),
        (types.SimpleNamespace(nvmlInit_v2=lambda: 9), "nvmlInit_v2 gives status 9"),
        (types.SimpleNamespace(), "nvmlInit_v2"),
    ],
)
def test_a_gpu_that_tells_nothing_says_why(cuda, lib, why, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert why in find_power(cuda, str(tmp_path), lib)


@pytest.mark.parametrize("version", ["_v3", "_v2"])
@pytest.mark.parametrize(
    ("processes", "mb"),
    [
        ([(1, 7 * MIB), (os.getpid(), 400 * MIB)], 400.0),
        ([(1, 7 * MIB)], 7.0),  # alone: a container's ids are others
        ([(1, 7 * MIB), (2, 9 * MIB)], None),
        ([], None),
        ([(os.getpid(), 2**64 - 1)], None),
    ],
)
def test_memory_of_this_process_on_the_gpu(cuda, version, processes, mb):
    assert Nvml(cuda, PlayedNvml(processes=processes, version=version)).process_mb() == mb


def test_an_old_driver_names_no_processes(cuda):
    assert Nvml(cuda, PlayedNvml(version="_v1")).process_mb() is None


def test_power_is_read_while_inferences_run(orin, served):
    made, ask = served()
    found = ask(mode="graph")["ok"]
    assert (found["source"], found["unit"], found["graph"]) == ("INA3221", "mW", True)
    for phase in ("idle", "busy"):
        moments = [moment for moment, _ in found[phase]["samples"]]
        assert moments == sorted(moments)
        assert found[phase]["samples"][0][1]["VDD_IN"] == 6000.0
    busy = found["busy"]
    assert busy["seconds"] >= 0.01
    assert 1 <= busy["inferences"] < made.loaded["main"].runs  # others warmed up


def test_a_look_that_fails_is_left_out():
    seen = iter([{"GPU": 1.0}, OSError("busy"), {}, {"GPU": 2.0}])
    taken = threading.Event()

    def read():
        value = next(seen, None)
        if value is None:
            taken.set()
            return {}
        if isinstance(value, OSError):
            raise value
        return value

    answer, looks = Rails("INA3221", "mW", read).during(lambda: taken.wait(10.0))
    assert answer
    assert [values for _, values in looks] == [{"GPU": 1.0}, {"GPU": 2.0}]


def test_nothing_tells_the_power(served):
    _, ask = served()
    assert ask()["ok"] == {
        "unavailable": "no INA3221 sensor, no power in tegrastats, no GPU",
    }


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"seconds": 0}, "request-invalid"),
        ({"idle_s": 61}, "request-invalid"),
        ({"seconds": float("nan")}, "request-invalid"),
        ({"mode": "enqueue"}, "mode-refused"),
        ({"name": "other"}, "not-loaded"),
    ],
)
def test_what_cannot_be_measured_is_refused(orin, served, more, code):
    _, ask = served()
    assert ask(**more)["error"]["code"] == code


def memory(made, **more):
    return made.answer({"id": 1, "op": "memory", **more})["ok"]


def test_memory_of_a_cpu(tmp_path, served):
    put(tmp_path, "proc/self/status", STATUS)
    put(tmp_path, "proc/self/clear_refs", "")
    put(tmp_path, "proc/meminfo", "MemTotal: 8192000 kB\nMemAvailable: 4096000 kB")
    made, _ = served()
    found = memory(made, restart=True)
    assert found == {
        "resident_mb": 100.0, "peak_mb": 200.0, "restarted": True, "available_mb": 4000,
        "unified": False, "gpu_mb": None, "gpu_used_mb": None,
    }  # fmt: skip
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
    assert memory(made)["restarted"] is False


def test_memory_that_nothing_tells_is_null(served):
    made, _ = served()
    found = memory(made, restart=True)
    assert [found[k] for k in ("resident_mb", "peak_mb", "available_mb")] == [None, None, None]
    assert not found["restarted"]


@pytest.mark.parametrize("unified", [False, True])
def test_memory_of_a_gpu(served, cuda, unified):
    cuda.lib.unified = unified
    made, _ = served(cuda, PlayedNvml(processes=[(os.getpid(), 400 * MIB)]))
    found = memory(made)
    assert (found["unified"], found["gpu_mb"]) == (unified, 400.0)
    assert found["gpu_used_mb"] == 5 * 1024


def test_memory_where_nvml_is_not_there(served, cuda):
    made, _ = served(cuda, types.SimpleNamespace())
    found = memory(made)
    assert (found["gpu_mb"], found["gpu_used_mb"]) == (None, 5 * 1024)
