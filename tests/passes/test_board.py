"""A build whose engine is made elsewhere: another interpreter, or a board behind a real sshd."""

import json
import shutil
import sys
import threading
import time

import pytest
from command_line import kdcompile
from small_digits import AT_64
from sshd import running_sshd

SMALL = [
    *AT_64,
    "distill.steps=12",
    "distill.evaluations=1",
    "data.train=train:24",
    "data.val=val:8",
    "data.test=test:16",
    "quantize.images=4",
    "quantize.qad=true",
    "gates.accuracy.required=false",  # a few steps train no student
    "gates.speedup.required=false",  # a busy machine decides no test
    "compile.backend=onnxruntime",  # which plays the board
]
PYTHON = f"python:{sys.executable}"


def _sets(*more):
    return [word for value in (*SMALL, *more) for word in ("--set", value)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the example and its bundle, the engine built by another interpreter."""
    folder = tmp_path_factory.mktemp("board")
    kdcompile(folder, "init", "--example", "digits", "tiny")
    kdcompile(folder, "build", "tiny", "--target", "jetson", "--via", PYTHON, *_sets())
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


def _report(folder):
    return json.loads((folder / "dist" / "tiny-jetson" / "report.json").read_text())


def test_the_bundle_has_the_engine_and_who_built_it(built):
    bundle = built / "dist" / "tiny-jetson"
    record = json.loads((bundle / "model.engine.json").read_text())
    choice = _report(built)["details"]["choice"]
    assert record["precision"] == choice["precision"]
    assert choice["board"]["label"] == PYTHON
    assert {c["precision"] for c in choice["candidates"]} >= {"fp32", "fp16", "int8"}
    assert all("alternated runs at" in c["latency"] for c in choice["candidates"])
    assert "bf16" in choice["refused"]
    assert (bundle / "kit" / "build_engine.py").is_file()
    assert "model.engine" in json.loads((bundle / "manifest.json").read_text())["files"]


def test_the_ranges_are_those_that_were_trained(built):
    details = _report(built)["details"]
    assert details["distill"]["qad"]["scales"] == "learnt"
    assert details["calibration"]["calibrator"] == "qad-learnt"


def test_onnx_runtime_on_a_cpu_only_plays_a_jetson(built):
    report = _report(built)
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert gates["parity"]["evidence"] == "host"
    assert gates["parity@device"]["verdict"] == "pending"
    assert gates["speedup"]["evidence"] == "predicted"
    speeds = [m for m in report["measurements"] if m["name"] == "speed-up"]
    timed = next(m for m in speeds if m["evidence"] == "host")
    assert timed["backend"] == "onnxruntime"
    assert PYTHON in timed["mode"]


def test_the_same_board_is_not_asked_twice(built):
    again = kdcompile(built, "build", "tiny", "--target", "jetson", "--via", PYTHON, *_sets())
    assert again.stderr == ""


@pytest.mark.soak
def test_verify_over_ssh_goes_on_after_the_board_was_lost(built, server):
    """The connection dies while the board works; the same command then goes on and ends."""
    work = built / "lost"
    shutil.copytree(built / "tiny", work / "tiny")
    env = {"KDCOMPILE_SSH_CONFIG": str(server.config)}
    args = ("verify", "tiny", "--target", "jetson", "--via", server.via(), "--json", *_sets())
    stop = threading.Event()

    def cut():
        engines = server.home / ".cache" / "kdcompile"
        while not stop.is_set() and not list(engines.glob("student_*.engine")):
            time.sleep(0.02)
        server.kill_connections()

    thread = threading.Thread(target=cut)
    thread.start()
    lost = kdcompile(work, *args, code=1, **env)
    stop.set()
    thread.join()
    assert "error[board-lost]" in lost.stderr
    assert "same command" in lost.stderr
    kept = {p.name: p.stat().st_mtime_ns for p in _engines(server)}
    assert kept
    found = json.loads(kdcompile(work, *args, **env).stdout)
    assert found["details"]["choice"]["board"]["label"].startswith("ssh://")
    now = {p.name: p.stat().st_mtime_ns for p in _engines(server)}
    assert kept.items() <= now.items(), "what was built before the loss is used, not built again"


def _engines(server):
    return (server.home / ".cache" / "kdcompile").glob("student_*.engine")


def test_a_board_without_tensorrt_is_exit_4(built, server):
    args = ("compile", "tiny", "--target", "jetson", "--via", server.via())
    sets = _sets("compile.backend=tensorrt")
    found = kdcompile(built, *args, *sets, code=4, KDCOMPILE_SSH_CONFIG=str(server.config))
    assert "error[tensorrt-missing]" in found.stderr
