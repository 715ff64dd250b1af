"""Verify at a board: the gates judge the engine that ships, with the evidence of where it ran."""

from functools import cache

import played_tensorrt
import pytest
from computing_tensorrt import typical
from near_place import NearGpu
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.backends import engine
from kdcompile.core.errors import KDError
from kdcompile.core.measurement import Settings
from kdcompile.gates import measure
from kdcompile.passes import compile as compile_stage
from kdcompile.remote.agent import machine, worker

ON_DEVICE = [f"gates.{gate}.evidence=device" for gate in ("accuracy", "parity", "speedup")]
pace = engine.pace
NANO = {"/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit"}


@pytest.fixture(scope="module", autouse=True)
def patch():
    """Few timings, no compile check beside, and a replayed graph takes what its layers take."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(compile_stage, "compile_check", lambda *values: [])
        m.setattr(played_tensorrt, "REPLAY_MS", 0.0)
        m.setattr(engine, "pace", lambda *values, **named: engine.Pace(6, 2, 1))
        m.setattr(measure, "TIMING", Settings(seconds=0.05))
        yield m


def made_at(place, target, root, patch, sets=()):
    """A build whose engine is made and verified at a place."""
    build = SmallBuild(root, sets=sets)
    build.run("calibrate", target)
    with place.installed(patch):
        board = place.board(target)
        build.run("compile", target, board)
        build.run("verify", target, board)
    return build


def h100(version):
    return targets.load("h100").with_backend(version)


@pytest.fixture(scope="module")
def verified(tmp_path_factory, patch):
    """`verified(version)` -> (build, place) at a played H100, made once."""

    @cache
    def make(version):
        root = tmp_path_factory.mktemp("h100")
        place = NearGpu(version, root / "there")
        return made_at(place, h100(version), root, patch), place

    return make


@pytest.fixture(params=["8.6.1", "10.13.3", "11.4.0"])
def at_h100(request, verified):
    """(build, place, version) of three generations."""
    return *verified(request.param), request.param


@pytest.fixture
def old(verified):
    """(build, place, target) of the oldest, to go on from."""
    build, place = verified("8.6.1")
    return build.copy(), place, h100("8.6.1")


def gates_of(build):
    return {gate["name"]: gate for gate in build.report()["gates"]}


def test_every_gate_is_decided_on_the_device(at_h100):
    build, place, version = at_h100
    gates, report = gates_of(build), build.report()
    assert list(gates) == ["accuracy", "parity", "speedup", "size_mb"]
    assert {gate["evidence"] for gate in gates.values()} == {"device"}
    assert {gate["verdict"] for gate in gates.values()} == {"passed"}
    assert (report["verdict"], report["exit_code"]) == ("passed", 0)
    numbers = [m for name in ("accuracy", "parity", "speedup") for m in gates[name]["measurements"]]
    assert {m["machine"] for m in numbers} == {"NVIDIA H100 80GB HBM3"}
    assert {(m["backend"], m["backend_version"]) for m in numbers} == {("tensorrt", version)}
    assert report["environment"]["backend"] == "tensorrt"
    assert not any(scene.driver.alive for scene in place.scenes)


def test_speed_is_of_the_two_engines(at_h100):
    """The teacher in fp16, eight layers more, beside the chosen student."""
    build, _, _ = at_h100
    chosen = build.made["compile"].json("choice.json")["precision"]
    student = build.made["compile"].json("model.engine.json")
    speedup = gates_of(build)["speedup"]["measurements"][0]
    took = {"int8": 5.0, "mixed": 5.0, "fp8": 5.0}[chosen]
    assert speedup["value"] == pytest.approx(24.0 / took)
    assert speedup["low"] == pytest.approx(speedup["high"])
    assert (speedup["precision"], student["precision"]) == (chosen, chosen)
    for words in ("tensorrt at here", "1x3x16x16", "CUDA graph, inputs on the device"):
        assert words in speedup["mode"]


def test_each_mode_is_reported_and_only_the_first_is_judged(at_h100):
    build, _, _ = at_h100
    rows = [m for m in build.report()["measurements"] if m["name"].endswith(" latency")]
    measured = [m for m in rows if m["evidence"] == "device"]
    modes = ("CUDA graph", "1x3x16x16, inputs on the device", "end to end")
    for who in ("teacher", "student"):
        for mode in modes:
            (one,) = [m for m in measured if m["name"].startswith(who) and mode in m["mode"]]
            assert one["low"] <= one["value"] <= one["high"]
            assert one["n"] == 6
    teachers = {m["precision"] for m in measured if m["name"].startswith("teacher")}
    assert teachers == {"fp16"}
    assert {m["evidence"] for m in rows if m not in measured} == {"predicted"}


def test_what_ran_here_says_so(at_h100):
    """fp32 and int8 files by ONNX Runtime, the engine there."""
    build, _, version = at_h100
    chosen = build.made["compile"].json("choice.json")["precision"]
    rows = [m for m in build.report()["measurements"] if m["name"].endswith(" mae")]
    found = [(m["name"], m["precision"], m["evidence"], m["backend"]) for m in rows]
    assert found == [
        ("teacher mae", "fp32", "host", "onnxruntime"),
        ("student mae", "fp32", "host", "onnxruntime"),
        ("student mae", "int8", "host", "onnxruntime"),
        ("student mae", chosen, "device", "tensorrt"),
    ]
    assert rows[-1]["backend_version"] == version


def test_the_report_names_the_engine_and_its_layers(at_h100):
    build, _, _ = at_h100
    details = build.report()["details"]
    chosen = details["choice"]["precision"]
    assert set(details["engines"]) == {c["precision"] for c in details["choice"]["candidates"]}
    assert (
        details["engines"][chosen]["bytes"]
        == build.made["compile"].json("model.engine.json")["bytes"]
    )
    assert {layer["name"] for layer in details["layers"]} == {"c0", "c1", "c2", "out"}
    assert sum(layer["share"] for layer in details["layers"]) == pytest.approx(1.0)
    assert "3 of 3 layers in int8" in details["mixed"]["summary"]
    assert {row["layer"] for row in details["sensitivity"]} == {"c0", "c1", "c2"}


def test_gates_that_ask_for_the_device_pass_there_and_wait_elsewhere(old, patch):
    build, place, target = old
    with place.installed(patch):
        build.run("verify", target, place.board(target), ON_DEVICE)
    assert {(g["verdict"], g["evidence"]) for g in build.report()["gates"]} == {
        ("passed", "device")
    }
    build.run("compile", target, sets=ON_DEVICE)
    build.run("verify", target, sets=ON_DEVICE)
    gates = gates_of(build)
    assert list(gates) == ["accuracy@device", "parity@device", "speedup@device", "size_mb"]
    waiting = [gate for name, gate in gates.items() if name.endswith("@device")]
    assert {gate["verdict"] for gate in waiting} == {"pending"}
    assert all("this build measured on its host" in gate["reason"] for gate in waiting)
    assert gates["size_mb"]["evidence"] == "host"


def test_a_jetson_at_the_board_leaves_nothing_pending(tmp_path, patch):
    target = targets.load("jetson")
    place = NearGpu("10.3.0", tmp_path / "there", capability="8.7", name=b"Orin")
    with patch.context() as m:
        m.setattr(worker, "first_line", NANO.get)
        m.setattr(machine, "memory_mb", lambda path: {"total": 7620, "free": 4000})
        build = made_at(place, target, tmp_path, patch, ["gates.speedup.min=1e-6"])
    assert {g["evidence"] for g in build.report()["gates"]} == {"device"}
    build.run("compile", target)
    build.run("verify", target)
    host = gates_of(build)
    assert [name for name, gate in host.items() if gate["verdict"] == "pending"] == [
        "accuracy@device", "parity@device", "speedup@device",
    ]  # fmt: skip
    assert build.report()["verdict"].startswith("passed on host")


def test_a_student_that_is_no_faster_there_fails_the_gate(old, patch):
    """However its MACs compare: the layers that the teacher has more cost nothing."""

    def change(scene):
        scene.costs = lambda name, kind: 0.0 if name.startswith("t") else typical(name, "fp32")

    build, place, target = old
    slow = NearGpu("8.6.1", place.work, change)
    with slow.installed(patch):
        build.run("verify", target, slow.board(target))
    speedup = gates_of(build)["speedup"]
    assert (speedup["verdict"], speedup["evidence"]) == ("failed", "device")
    assert speedup["measurements"][0]["value"] == pytest.approx(1.0)
    assert build.report()["exit_code"] == 3


def test_engines_that_are_no_cuda_graphs_are_judged_without(old, patch, caplog):
    def change(scene):
        scene.driver.broken["cuGraphInstantiateWithFlags"] = 0

    build, place, target = old
    other = NearGpu("8.6.1", place.work, change)
    with patch.context() as m, other.installed(m):
        m.setattr(engine, "pace", pace)
        build.run("verify", target, other.board(target))
    speedup = gates_of(build)["speedup"]
    assert speedup["verdict"] == "passed"
    assert ", inputs on the device" in speedup["measurements"][0]["mode"]
    modes = {m["mode"] for m in build.report()["measurements"] if m["evidence"] == "device"}
    assert not [mode for mode in modes if "CUDA graph" in mode]
    assert [mode for mode in modes if "end to end" in mode]
    assert "timing without a CUDA graph" in caplog.text


@pytest.mark.parametrize(
    ("elsewhere", "named"),
    [
        ({"version": "8.5.3"}, "built by tensorrt 8.6.1"),
        ({"version": "8.6.1", "capability": "8.9"}, "for sm_90"),
    ],
)
def test_engines_of_another_board_are_refused(old, tmp_path, patch, elsewhere, named):
    build, place, target = old
    board, other = place.board(target), NearGpu(work=tmp_path / "else", **elsewhere)
    with other.installed(patch), pytest.raises(KDError) as error:
        build.run("verify", target, board)
    assert error.value.code == "engine-mismatch"
    assert named in error.value.message
    assert error.value.fix


def test_a_network_that_differs_on_the_device_fails_parity(old, patch):
    """What ONNX Runtime here computes does not decide for the engine there."""
    build, place, target = old
    run = engine.EngineRunner.__call__
    with patch.context() as m, place.installed(m):
        m.setattr(engine.EngineRunner, "__call__", lambda self, image: 2 * run(self, image))
        build.run("verify", target, place.board(target))
    gates = gates_of(build)
    assert gates["parity"]["verdict"] == "failed"
    assert gates["parity"]["measurements"][0]["value"] == pytest.approx(0.0, abs=0.5)
