"""What the worker tells of its machine: what it is set to, and what it does at this moment."""

import ctypes
import types

import played_tensorrt as played
import pytest

from kdcompile.remote.agent.cuda import Cuda
from kdcompile.remote.agent.machine import facts
from kdcompile.remote.agent.signals import sensors, signals
from kdcompile.remote.agent.worker import Worker

SM = 1
TOLD = {
    "nvmlDeviceGetPowerManagementLimit": 700_000, "nvmlDeviceGetMaxClockInfo": {SM: 1980},
    "nvmlDeviceGetClockInfo": {SM: 1755}, "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
}  # fmt: skip


class Nvml:
    """`told` by function; a dictionary is by clock, and None is not supported."""

    def __init__(self, told):
        self.told = told

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus, gpu):  # noqa: N802
        return 0

    def __getattr__(self, name):
        def number(gpu, *values):
            *which, found = values
            value = self.told[name]
            if value is None:
                return 3
            found._obj.value = value[which[0]] if which else value
            return 0

        if name not in self.told:
            raise AttributeError(name)
        return number


class Driver(played.Driver):
    """The played driver, of a card in a slot."""

    def _cuDeviceGetPCIBusId(self, text, size, device):  # noqa: N802
        text.value = b"0000:17:00.0"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """`asked(nvml)` -> a worker with a card, at an empty tree of files."""

    def make(nvml):
        with monkeypatch.context() as patch:
            patch.setattr(ctypes, "CDLL", lambda name: Driver("9.0"))
            cuda = Cuda()
        made = Worker("onnxruntime")
        made.backend = types.SimpleNamespace(
            cuda=cuda, modes=("device",), version="1", about=lambda: {"gpu": cuda.about()}
        )
        made.root, made.nvml = str(tmp_path), nvml
        return lambda op: made.answer({"id": 1, "op": op})["ok"]

    return make


def put(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_a_cards_limits_and_flags_are_told_by_nvml(asked):
    ask = asked(Nvml(TOLD))
    machine = ask("hello")["machine"]
    assert (machine["gpu_power_limit_w"], machine["gpu_max_clock_mhz"]) == ("700.00", "1980")
    found = ask("signals")
    assert (found["gpu_hz"], found["gpu_flags"]) == (1.755e9, 0x24)


@pytest.mark.parametrize("lib", [Nvml(dict.fromkeys(TOLD)), Nvml({}), types.SimpleNamespace()])
def test_a_card_that_tells_nothing_has_no_signals(asked, lib):
    ask = asked(lib)
    assert not {"gpu_power_limit_w", "gpu_max_clock_mhz"} & ask("hello")["machine"].keys()
    assert not {"gpu_hz", "gpu_flags"} & ask("signals").keys()


@pytest.mark.parametrize(("text", "count"), [("0-5", 6), ("0-3,6", 5), ("0", 1)])
def test_cores_that_are_on(tmp_path, text, count):
    put(tmp_path, "sys/devices/system/cpu/online", text)
    assert facts(str(tmp_path))["cores"] == count


def test_clusters_with_limits_of_their_own_are_each_told(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 4}, raising=False)
    for cpu, khz in ((0, 1_510_400), (1, 1_510_400), (4, 2_201_600), (5, 9)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_max_freq", khz)
    found = facts(str(tmp_path))
    assert found["cpu_max_hz"] == [1_510_400_000, 2_201_600_000]
    assert (found["cpu_min_hz"], found["governor"], found["clock_limits"]) == (None, None, None)


def test_a_machine_that_tells_nothing(tmp_path):
    assert signals(str(tmp_path), ["self"], {0, 1}) == {}
    assert sensors(str(tmp_path)) == {}
    assert facts(str(tmp_path))["cpu"]  # the platform's word, at least
