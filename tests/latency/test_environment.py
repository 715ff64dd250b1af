"""The environment of a measurement: facts that are compared, and state that passes."""

import json

import pytest
from benching import CPU, GPU, Machine

from kdcompile.latency.compatibility import differing, record
from kdcompile.latency.environment import look, usable_cores
from kdcompile.remote.agent.machine import affinity, facts
from kdcompile.remote.agent.signals import sensors, signals
from kdcompile.remote.open import LocalPlace

SMI = {
    "power.limit": "700.00", "clocks.max.sm": "1980", "clocks.applications.graphics": "[N/A]",
    "compute_mode": "Default", "persistence_mode": "Enabled", "clocks.sm": "1755",
    "clocks.mem": "2619", "clocks_throttle_reasons.active": "0x0000000000000004",
    "temperature.gpu": "41", "power.draw": "310.5", "utilization.gpu": "98", "uuid": "GPU-1",
    "driver_version": "550.54.15",
}  # fmt: skip


class Board:
    """A place elsewhere, whose worker looks at a tree of files."""

    label = "board"

    def __init__(self, about, root):
        self.about, self.root = about | {"machine": facts(str(root))}, str(root)

    def call(self, op):
        assert op == "signals"
        return sensors(self.root) | signals(self.root, [], affinity())


class Here(Board, LocalPlace):
    """A place of this machine without a process."""


def smi(options):
    if options[0].startswith("--query-compute-apps"):
        return "123\n456\n"
    return ", ".join(SMI[field] for field in options[0].partition("=")[2].split(","))


def silent(options):
    return ""


@pytest.fixture
def root(tmp_path):
    machine = Machine(tmp_path)
    cpu = "sys/devices/system/cpu"
    first = f"{cpu}/cpu0/cpufreq"
    machine.put(f"{first}/scaling_governor", "performance")
    machine.put(f"{first}/scaling_max_freq", "3000000")
    machine.put(f"{cpu}/intel_pstate/no_turbo", "1")
    machine.put("sys/fs/cgroup/cpu.max", "200000 100000")
    machine.put("proc/loadavg", "0.50 0.40 0.30 1/99 1234")
    machine.put("proc/sys/kernel/osrelease", "6.1.0")
    machine.put("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp")
    machine.put("sys/class/thermal/thermal_zone0/temp", "51000")
    machine.put(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
    )
    return machine


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)


def test_this_machine(root, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    found = look(Here(CPU, root.root), ask=smi)
    facts, state = found["facts"], found["state"]
    assert facts | {
        "backend": "onnxruntime", "onnxruntime_version": "1.20.0", "python_version": "3.11.7",
        "governor": "performance", "cpu_max_hz": 3_000_000_000, "cpu_boost": False,
        "cpu_quota": "200000 100000", "threads": {"OMP_NUM_THREADS": "2"}, "gpu": None,
    } == facts  # fmt: skip
    assert facts["usable_cores"] == usable_cores() == 2
    assert facts["cpu"]
    assert state | {
        "os_version": "6.1.0", "load_average": [0.5, 0.4, 0.3], "cpu_hz": 2e9,
        "celsius": {"x86_pkg_temp": 51.0}, "numpy_version": "2.0.0", "free_memory_mb": 4000,
    } == state  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert "driver_version" not in facts


def test_a_gpu_here(root):
    found = look(Here(GPU, root.root), ask=smi)
    facts, state = found["facts"], found["state"]
    assert facts | {
        "tensorrt_version": "8.6.1", "gpu": "H100", "compute_capability": "9.0",
        "driver_version": "550.54.15", "gpu_power_limit_w": "700.00", "gpu_max_clock_mhz": "1980",
        "gpu_application_clock_mhz": None, "gpu_persistence_mode": "Enabled",
    } == facts  # fmt: skip
    assert state | {
        "gpu_clock_mhz": "1755", "gpu_throttling": ["power limit"], "gpu_celsius": "41",
        "gpu_processes": 2, "gpu_free_mb": 70000,
    } == state  # fmt: skip


def test_a_driver_without_its_file_is_asked(root):
    (root.root / "proc/driver/nvidia/version").unlink()
    assert look(Here(GPU, root.root), ask=smi)["facts"]["driver_version"] == "550.54.15"
    facts = look(Here(GPU, root.root), ask=silent)["facts"]
    assert facts["driver_version"] is None
    assert facts["gpu_power_limit_w"] is None


def test_the_open_module_names_its_version_too(root):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build"
    root.put("proc/driver/nvidia/version", text)
    assert look(Here(GPU, root.root), ask=silent)["facts"]["driver_version"] == "560.35.03"


def test_a_board_is_what_its_worker_tells(root):
    about = GPU | {"module": "NVIDIA Jetson Orin Nano", "power_mode": "15W", "l4t": "R36"}
    found = look(Board(about, root.root), ask=smi)
    facts, state = found["facts"], found["state"]
    assert (facts["module"], facts["power_mode"]) == ("NVIDIA Jetson Orin Nano", "15W")
    assert (facts["governor"], facts["driver_version"]) == ("performance", "550.54.15")
    assert state["clocks_hz"] == {"17000000.ga10b": 1_000_000_000, "mc": 3_000_000_000}
    assert "gpu_persistence_mode" not in facts  # nvidia-smi here is of another card
    assert "gpu_processes" not in state


def test_what_passes_is_not_compared_and_another_machine_is(root):
    before = look(Here(GPU, root.root), ask=smi)
    root.put("proc/loadavg", "9.00 9.00 9.00 1/99 1234")
    root.khz = 1_000_000
    root.write()
    after = look(Here(GPU, root.root), ask=smi)
    assert before != after
    assert differing(record(before, {}), record(after, {})) == []
    other = look(Here(GPU | {"backend_version": "8.5.2"}, root.root), ask=smi)
    assert [d.key for d in differing(record(before, {}), record(other, {}))] == ["tensorrt_version"]


def test_a_bare_container(tmp_path):
    found = look(Here(CPU, tmp_path), ask=silent)
    assert found["facts"]["governor"] is None
    assert found["facts"]["cpu_boost"] is None
    assert "load_average" not in found["state"]
    machine = Machine(tmp_path)
    machine.put("sys/devices/system/cpu/cpufreq/boost", "1")
    assert look(Here(CPU, tmp_path), ask=silent)["facts"]["cpu_boost"] is True
