"""Energy and memory gates of whole `verify` stages: at a played board, and of ONNX Runtime here."""

import itertools
import os
from functools import partial

import played_tensorrt
import pytest
from near_place import NearGpu
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.backends import engine
from kdcompile.core.measurement import Settings
from kdcompile.gates import measure, resources
from kdcompile.latency import energy_memory
from kdcompile.passes import compile as compile_stage
from kdcompile.remote.agent.power import Rails
from kdcompile.remote.agent.worker import Worker

MIB = 1 << 20
GATES = ("gates.energy_mj.max=1e9", "gates.memory_mb.max=500", "gates.speedup.min=1e-6")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(compile_stage, "compile_check", lambda *values: [])
    monkeypatch.setattr(played_tensorrt, "REPLAY_MS", 0.0)
    monkeypatch.setattr(engine, "pace", lambda *values, **named: engine.Pace(6, 2, 1))
    monkeypatch.setattr(measure, "TIMING", Settings(seconds=0.05))
    monkeypatch.setattr(Rails, "during", twenty_looks)
    monkeypatch.setattr(
        resources, "measure", partial(energy_memory.measure, seconds=0.3, idle_s=0.1)
    )


def twenty_looks(rails, act):
    """In place of a thread that looks as often as it gets the CPU."""
    return act(), [[0.02 * number, rails.read()] for number in range(20)]


class Nvml:
    """A card that has used 10 mJ more whenever it is asked; this process has 400 MiB of it."""

    def __init__(self):
        self.used = itertools.count(10**9, 10)

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus, gpu):  # noqa: N802
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu, found):  # noqa: N802
        found._obj.value = next(self.used)
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, gpu, count, found):  # noqa: N802
        found[0].pid, found[0].used, count._obj.value = os.getpid(), 400 * MIB, 1
        return 0


@pytest.mark.parametrize(("most", "verdict"), [(500, "passed"), (400, "failed")])
def test_at_a_board(tmp_path, monkeypatch, most, verdict):
    monkeypatch.setattr(Worker, "nvml", Nvml())
    target, place = targets.load("h100").with_backend("8.6.1"), NearGpu("8.6.1", tmp_path / "there")
    build = SmallBuild(tmp_path, sets=(*GATES, f"gates.memory_mb.max={most}"))
    build.run("calibrate", target)
    with place.installed(monkeypatch):
        board = place.board(target)
        build.run("compile", target, board)
        build.run("verify", target, board)
    report = build.report()
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert (gates["energy_mj"]["verdict"], gates["energy_mj"]["evidence"]) == ("passed", "device")
    assert "NVML (GPU)" in gates["energy_mj"]["reason"]
    assert gates["memory_mb"]["verdict"] == verdict
    assert gates["memory_mb"]["observed"] == "419.4 MB"
    numbers = {m["name"]: m for m in report["measurements"]}
    assert numbers["peak memory"]["value"] == pytest.approx(400 * 1.048576)
    assert numbers["energy of an inference"]["machine"] == "NVIDIA H100 80GB HBM3"
    assert report["exit_code"] == (0 if verdict == "passed" else 3)
    assert not any(scene.driver.alive for scene in place.scenes)


def test_of_a_cpu_here(tmp_path):
    target = targets.load("cpu")
    build = SmallBuild(tmp_path, sets=("gates.memory_mb.max=500", "gates.speedup.min=1e-6"))
    for stage in ("calibrate", "compile", "verify"):
        build.run(stage, target)
    gates = {gate["name"]: gate for gate in build.report()["gates"]}
    assert (gates["memory_mb"]["verdict"], gates["memory_mb"]["evidence"]) == ("passed", "host")
    assert "growth of the process" in gates["memory_mb"]["reason"]


def test_of_a_device_that_is_not_here(tmp_path):
    """What was not measured is no pass: the build is inconclusive."""
    target = targets.load("jetson")
    build = SmallBuild(tmp_path, sets=GATES)
    for stage in ("calibrate", "compile", "verify"):
        build.run(stage, target)
    report = build.report()
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert gates["energy_mj@device"]["verdict"] == "pending"
    assert gates["memory_mb"]["verdict"] == "skipped"
    assert "--via" in gates["memory_mb"]["reason"]
    assert (report["verdict"], report["exit_code"]) == ("inconclusive: memory_mb skipped", 5)
