"""The worker as a process, as a board runs it, with ONNX Runtime in TensorRT's place."""

import hashlib
import io
import json
import re
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hostile_place import framed

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.remote import agent
from kdcompile.remote.agent.errors import FIXES, WorkerError
from kdcompile.remote.agent.machine import clocks_hz, memory_mb
from kdcompile.remote.agent.messages import MOST_BYTES, message, read
from kdcompile.remote.agent.onnxruntime_backend import OnnxRuntime
from kdcompile.remote.agent.system import platform_name
from kdcompile.remote.agent.worker import BACKENDS, PROTOCOL, Worker
from kdcompile.remote.archive import NAME, agent_zip


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """`talk(*requests)`: send messages to the agent's file, read the answers."""
    agent = tmp_path_factory.mktemp("a folder") / NAME
    agent.write_bytes(agent_zip())
    return partial(converse, agent)


def converse(agent, *requests, backend="onnxruntime", expect=0):
    sent = [
        r if isinstance(r, bytes) else message({"id": i, **r} if isinstance(r, dict) else r)
        for i, r in enumerate(requests)
    ]
    done = subprocess.run(
        [sys.executable, agent, backend], input=b"".join(sent), capture_output=True, check=False
    )
    assert done.returncode == expect, done.stderr
    assert b"Traceback" not in done.stderr
    stream = io.BytesIO(done.stdout)
    return list(iter(lambda: read(stream), None))


def test_a_cpu_session_has_the_threads_that_were_asked_for(onnx_files):
    path = str(onnx_files()["fp32"])
    blob = Path(path).read_bytes()
    record = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "onnxruntime": onnxruntime.__version__,
        "precision": "fp32",
        "platform": platform_name(),
        "compute_capability": None,
    }
    played = Worker("onnxruntime")
    for threads in (0, 1, 2):
        played.load(path, expected=record, threads=threads)
        options = played.loaded["main"].session.get_session_options()
        assert options.intra_op_num_threads == threads


def test_conversation(talk, onnx_files, tmp_path):
    image = np.random.default_rng(3).standard_normal((1, 3, 16, 24)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=image)
    files = onnx_files()
    engine, inputs, outputs = (str(tmp_path / n) for n in ("e.onnx", "in.npz", "out.npz"))
    hello, built, loaded, ran, timed, bye = talk(
        {"op": "hello"},
        {"op": "build", "onnx": str(files["fp32"]), "engine": engine, "precision": "fp32"},
        {"op": "load", "path": engine},
        {"op": "run", "inputs": inputs, "outputs": outputs},
        {"op": "time", "inputs": inputs, "iterations": 7, "warmup": 1},
        {"op": "quit"},
        {"op": "hello"},  # not answered any more
    )
    assert [a["id"] for a in (hello, built, loaded, ran, timed, bye)] == list(range(6))
    assert hello["ok"]["protocol"] == PROTOCOL
    assert (hello["ok"]["backend"], hello["ok"]["gpu"]) == ("onnxruntime", None)
    assert hello["ok"]["memory_mb"]["total"] >= hello["ok"]["memory_mb"]["free"] > 0
    assert hello["ok"]["disk_mb"] > 0
    assert hello["ok"]["precisions"]["mixed"] == {"onnx": "mixed", "flags": [], "network": []}
    port = {"dtype": "float32", "shape": [1, 3, 16, 24]}
    assert loaded["ok"]["inputs"] == {"image": port}
    assert built["ok"]["bytes"] == files["fp32"].stat().st_size
    assert ran["ok"] == {"outputs": {"density": [1, 1, 8, 12]}}
    with np.load(outputs) as found:
        np.testing.assert_allclose(found["density"], open_session(files["fp32"])(image), rtol=1e-5)
    assert timed["ok"]["device"] is None
    assert timed["ok"]["wall"]["n"] == 7
    assert 0 < timed["ok"]["wall"]["p50_ms"] <= timed["ok"]["wall"]["p90_ms"]
    assert bye["ok"] == {}


def test_errors_are_answers(talk, onnx_files, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    np.savez(tmp_path / "other.npz", picture=np.zeros((1, 3, 16, 24), np.float32))
    np.savez(tmp_path / "size.npz", image=np.zeros((1, 3, 16, 25), np.float32))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    out, engine = str(tmp_path / "out.npz"), str(tmp_path / "e.onnx")
    order = {"op": "build", "engine": engine, "precision": "fp32"}
    answers = talk(
        "text",
        {"op": "explode"},
        [1, 2],
        {"op": "load"},
        {"op": "load", "path": str(tmp_path / "absent.onnx")},
        {"op": "load", "path": str(tmp_path / "bad.onnx")},
        {**order, "onnx": str(tmp_path / "bad.onnx")},
        {"op": "run", "inputs": "x", "outputs": out},
        {**order, "onnx": str(onnx_files()["fp32"])},
        {"op": "load", "path": engine},
        {"op": "run", "inputs": str(tmp_path / "other.npz"), "outputs": out},
        {"op": "run", "inputs": str(tmp_path / "size.npz"), "outputs": out},
        {"op": "run", "inputs": str(tmp_path / "torn.npz"), "outputs": out},
        {"op": "time", "inputs": str(tmp_path / "size.npz"), "iterations": 0},
        {"op": "time", "inputs": str(tmp_path / "size.npz"), "mode": "graph"},
        {"op": "hello"},  # it still answers
    )
    codes = [a["error"]["code"] if "error" in a else "ok" for a in answers]
    assert codes == [
        "request-invalid", "request-invalid", "request-invalid", "request-invalid", "file",
        "engine-unknown", "onnx-refused", "not-loaded", "ok", "ok", "input-missing",
        "shape-refused", "internal", "request-invalid", "mode-refused", "ok",
    ]  # fmt: skip
    for answer in answers:
        if "error" in answer:
            assert answer["error"]["message"]
            assert answer["error"]["fix"]


@pytest.mark.parametrize(
    "sent",
    [
        b'{"id": 1, "op": "hello"}\n',
        b"\0kdc",
        framed(b"not json"),
        framed(b'{"id": 1, "op"', length=30),
        framed(b"\xff"),
        framed(b"", length=MOST_BYTES + 1),
        framed(b"", length=1 << 63),
    ],
)
def test_what_is_no_message_ends_it(talk, sent):
    first, last = talk({"op": "quit", "more": 1}, expect=0), talk(sent, expect=1)
    assert first[0]["error"]["code"] == "request-invalid"
    assert [answer["error"]["code"] for answer in last] == ["request-invalid"]


@pytest.mark.parametrize(("backend", "code"), [("tensorrt", "-missing"), ("abacus", "-unknown")])
def test_absent_backend(talk, tmp_path, monkeypatch, backend, code):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libnvinfer here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (answer,) = talk({"op": "hello"}, backend=backend, expect=4)
    assert answer["error"]["code"].endswith(code)


def test_every_code_has_its_fix():
    text = "".join(path.read_text() for path in Path(agent.__file__).parent.glob("*.py"))
    assert set(re.findall(r'WorkerError\(\s*"([a-z-]+)"', text)) <= set(FIXES)
    for code in FIXES:
        assert text.count(f'"{code}"') >= 2, f"{code} is raised nowhere"


def test_files(talk, tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    there, absent, _, gone, none = talk(
        {"op": "stat", "path": a},
        {"op": "stat", "path": b},
        {"op": "remove", "path": a},
        {"op": "stat", "path": a},
        {"op": "remove", "path": a},
    )
    found = {"exists": True, "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
    assert there["ok"] == found
    assert absent["ok"] == gone["ok"] == {"exists": False, "bytes": 0, "sha256": None}
    assert none["ok"] == {}
    assert not list(tmp_path.iterdir())


@pytest.fixture
def served(onnx_files, tmp_path):
    """A worker of this process with the int8 network as `main`, and its input's file."""
    made = Worker("onnxruntime")
    made.backend.build(str(onnx_files()["int8"]), str(tmp_path / "e.onnx"), "int8")
    made.load(str(tmp_path / "e.onnx"))
    np.savez(tmp_path / "in.npz", image=np.ones((1, 3, 16, 24), np.float32))
    return made, str(tmp_path / "in.npz")


def test_modes_and_profile(served):
    made, inputs = served
    one = made.time(inputs, 3, 1, mode="end_to_end", samples=True)
    assert [one["device"], one["wall"], one["end_to_end"]["n"]] == [None, None, 3]
    assert len(one["samples"]["end_to_end"]) == 3
    assert made.time(inputs, 3, 1)["wall"]["n"] == 3
    found = made.profile(inputs, 5)
    assert any(layer["onnx"] == ["head"] for layer in found["layers"])
    assert found["total_ms"] == pytest.approx(sum(layer["ms"] for layer in found["layers"]))
    assert {layer["provider"] for layer in found["layers"]} == {"CPUExecutionProvider"}
    made.unload("main")
    assert made.loaded == {}


@pytest.mark.parametrize(
    "option",
    [
        {"dla": 0},
        {"deterministic": True},
        {"optimization_level": 3},
        {"tf32": False},
    ],
)
def test_options_of_tensorrt_are_refused(onnx_files, tmp_path, option):
    made = Worker("onnxruntime")
    with pytest.raises(WorkerError) as caught:
        made.backend.build(str(onnx_files()["fp32"]), str(tmp_path / "e"), "fp32", **option)
    assert caught.value.code == "option-refused"
    assert next(iter(option)) in caught.value.message
    with pytest.raises(WorkerError) as caught:
        made.backend.build(str(onnx_files()["fp32"]), str(tmp_path / "e"), "bf16")
    assert caught.value.code == "precision-refused"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"onnxruntime": "1.0.0"}, "engine-mismatch"),
        ({"platform": "linux abacus"}, "engine-mismatch"),
        ({"sha256": "0"}, "engine-damaged"),
        ({"tensorrt": "10.3.0"}, "engine-unknown"),  # of which backend is it?
    ],
)
def test_preflight(served, tmp_path, change, code):
    made, _ = served
    side = tmp_path / "e.onnx.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), **change}))
    with pytest.raises(WorkerError) as caught:
        made.load(str(tmp_path / "e.onnx"))
    assert caught.value.code == code


def test_an_engine_of_tensorrt_is_not_opened(served, tmp_path):
    made, _ = served
    side = tmp_path / "e.onnx.json"
    record = json.loads(side.read_text())
    version = record.pop("onnxruntime")
    side.write_text(json.dumps({**record, "tensorrt": version}))
    with pytest.raises(WorkerError, match=r"built by tensorrt .* here onnxruntime"):
        made.load(str(tmp_path / "e.onnx"))


class PlayedSession:
    """A session that took the providers that the installation could open."""

    def __init__(self, blob, options, providers):
        self.asked, self.fallback = providers, True

    def disable_fallback(self):
        self.fallback = False

    def get_providers(self):
        return PlayedSession.takes

    get_inputs = get_outputs = lambda self: []


@pytest.mark.parametrize(
    ("backend", "provider"),
    [
        ("onnxruntime-cuda", "CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_falling_back_is_an_error(
    monkeypatch, played_driver, onnx_files, tmp_path, backend, provider
):
    with pytest.raises(WorkerError, match=f"not {provider}") as caught:
        Worker(backend)  # the installed one has the CPU only
    assert caught.value.code == "onnxruntime-missing"
    played = types.SimpleNamespace(
        __version__="1.26.0", InferenceSession=PlayedSession,
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: [provider, "CPUExecutionProvider"],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", played)
    made = Worker(backend)
    assert made.hello()["gpu"]["compute_capability"] == "8.7"
    order = (str(onnx_files()["int8"]), str(tmp_path / "e.onnx"), "int8")
    PlayedSession.takes = ["CPUExecutionProvider"]
    with pytest.raises(WorkerError, match="took CPUExecutionProvider") as caught:
        made.backend.build(*order)
    assert caught.value.code == "provider-fallback"
    PlayedSession.takes = [provider, "CPUExecutionProvider"]
    made.backend.build(*order)
    made.load(str(tmp_path / "e.onnx"))
    session = made.loaded["main"].session
    assert session.fallback is False
    flags = {"trt_fp16_enable": True, "trt_int8_enable": True}
    assert session.asked == [(provider, flags if "Tensorrt" in provider else {})]


@pytest.fixture
def azure(monkeypatch, played_driver):
    """A worker whose provider takes no node of any network: all of them go to the CPU."""
    provider = "AzureExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    backend = type("Azure", (OnnxRuntime,), {"provider": provider})
    monkeypatch.setitem(BACKENDS, "azure", backend)
    return Worker("azure")


def test_nodes_that_fall_back_one_by_one_are_an_error(azure, served, onnx_files, tmp_path):
    made, inputs = served
    made.time(inputs, 1)  # on the CPU there is nowhere to fall back to
    azure.backend.build(str(onnx_files()["fp32"]), str(tmp_path / "a.onnx"), "fp32")
    azure.load(str(tmp_path / "a.onnx"))
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"Conv .* runs on CPUExec.*, not Az") as e:
            azure.time(inputs, 1)
        assert e.value.code == "provider-fallback"


def test_sizes_may_be_computed_on_the_cpu(served, monkeypatch):
    made, inputs = served
    session = made.loaded["main"]
    calls = {"c": [(1.0, "CUDAExecutionProvider", "Conv")], "s": [(0.1, "CPU", "Shape")]}
    monkeypatch.setattr(session, "_trace", lambda feeds, count: calls)
    monkeypatch.setattr(made.backend, "provider", "CUDAExecutionProvider")
    assert made.time(inputs, 2)["wall"]["n"] == 2
    calls.clear()  # it has been looked at
    calls["c"] = [(1.0, "CPU", "Conv")]
    assert made.time(inputs, 2)["wall"]["n"] == 2


def test_machine_facts(tmp_path):
    gpu = tmp_path / "class" / "devfreq" / "17000000.gpu"
    cpu = tmp_path / "devices" / "system" / "cpu" / "cpufreq" / "policy0"
    for folder, name, value in (
        (gpu, "cur_freq", "930750000"),
        (cpu, "scaling_cur_freq", "2201600"),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(value + "\n")
    assert clocks_hz(str(tmp_path)) == {"17000000.gpu": 930750000, "policy0": 2201600000}
    (gpu / "cur_freq").write_text("<unsupported>")
    assert clocks_hz(str(tmp_path)) == {"policy0": 2201600000}
    (tmp_path / "meminfo").write_text("MemTotal: 8192 kB\nMemAvailable: 2048 kB\n")
    assert memory_mb(str(tmp_path / "meminfo")) == {"total": 8, "free": 2}
    assert memory_mb(str(tmp_path / "absent")) == {"total": None, "free": None}
