"""The worker as a process, as a board runs it, with ONNX Runtime in TensorRT's place."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdcompile.backends import worker
from kdcompile.backends.onnxruntime_ import open_session

FILE = Path(worker.__file__)
KIT_SCRIPT = FILE.parent / "kit" / "build_engine.py"


def talk(*requests, backend="onnxruntime", expect=0):
    """Send lines, read the answers."""
    lines = [
        r if isinstance(r, str) else json.dumps({"id": i, **r}) for i, r in enumerate(requests)
    ]
    done = subprocess.run(
        [sys.executable, FILE, backend], input="\n".join(lines), capture_output=True, text=True
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("path", [FILE, KIT_SCRIPT], ids=lambda path: path.name)
def test_is_python_38(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    allowed = {"numpy", "tensorrt", "onnxruntime", "worker"}
    assert imported - set(sys.stdlib_module_names) <= allowed


def test_conversation(onnx_files, tmp_path):
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
    assert hello["ok"]["protocol"] == worker.PROTOCOL
    assert (hello["ok"]["backend"], hello["ok"]["gpu"]) == ("onnxruntime", None)
    assert built["ok"]["bytes"] == files["fp32"].stat().st_size
    assert ran["ok"] == {"outputs": {"density": [1, 1, 8, 12]}}
    with np.load(outputs) as found:
        np.testing.assert_allclose(found["density"], open_session(files["fp32"])(image), rtol=1e-5)
    assert timed["ok"]["device"] is None
    assert timed["ok"]["wall"]["n"] == 7
    assert 0 < timed["ok"]["wall"]["min_ms"] <= timed["ok"]["wall"]["p50_ms"]
    assert bye["ok"] == {}


def test_errors_are_answers(onnx_files, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    np.savez(tmp_path / "other.npz", picture=np.zeros((1, 3, 16, 24), np.float32))
    np.savez(tmp_path / "size.npz", image=np.zeros((1, 3, 16, 25), np.float32))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    out = str(tmp_path / "out.npz")
    answers = talk(
        "not json",
        {"op": "explode"},
        [1, 2].__repr__(),
        {"op": "load"},
        {"op": "load", "path": str(tmp_path / "absent.onnx")},
        {"op": "load", "path": str(tmp_path / "bad.onnx")},
        {"op": "run", "inputs": "x", "outputs": out},
        {"op": "load", "path": str(onnx_files()["fp32"])},
        {"op": "run", "inputs": str(tmp_path / "other.npz"), "outputs": out},
        {"op": "run", "inputs": str(tmp_path / "size.npz"), "outputs": out},
        {"op": "run", "inputs": str(tmp_path / "torn.npz"), "outputs": out},
        {"op": "time", "inputs": str(tmp_path / "size.npz"), "iterations": 0},
        {"op": "hello"},  # it still answers
    )
    codes = [a["error"]["code"] if "error" in a else "ok" for a in answers]
    assert codes == [
        "request-invalid", "request-invalid", "request-invalid", "request-invalid", "file",
        "onnx-refused", "not-loaded", "ok", "input-missing", "internal", "internal",
        "request-invalid", "ok",
    ]  # fmt: skip
    for answer in answers:
        if "error" in answer:
            assert answer["error"]["message"]
            assert answer["error"]["fix"]


@pytest.mark.parametrize(("backend", "code"), [("tensorrt", "-missing"), ("abacus", "-unknown")])
def test_absent_backend(tmp_path, monkeypatch, backend, code):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libnvinfer here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (answer,) = talk({"op": "hello"}, backend=backend, expect=4)
    assert answer["error"]["code"].endswith(code)


def test_every_code_has_its_fix():
    text = FILE.read_text() + KIT_SCRIPT.read_text()
    assert set(re.findall(r'WorkerError\(\s*"([a-z-]+)"', text)) == set(worker.FIXES)
