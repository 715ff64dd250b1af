"""Libraries send no usage data: not from here, a board's worker or a bundle's own script."""

import ast
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from kdcompile import cli
from kdcompile.core import optional
from kdcompile.core.optional import NO_TELEMETRY, SENDER, silence

ROOT = Path(__file__).parents[1]
SOURCES = ("kdcompile", "calib", "kernels", "targets", "examples", "benchmarks")
INFER = ROOT / "kdcompile/bundle/templates/infer.py"
VARIABLE, OFF = "ORT_DISABLE_TELEMETRY", "1"
# what the package's own files do in place of `need`, which is not on a board or in a bundle
ALONE = {"doctor.py", "onnxruntime_backend.py", "infer.py"}
WATCH = """
import os, sys

class Watch:
    seen = []

    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            self.seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
model = sys.argv[1]
"""
WAYS = {
    "need": """
from pathlib import Path
from kdcompile.backends.onnxruntime_ import open_session
open_session(Path(model))
""",
    "doctor": """
from kdcompile.environment.doctor import examine
examine()
""",
    "worker": """
from kdcompile.remote.agent.onnxruntime_backend import OnnxRuntime
OnnxRuntime().ort.InferenceSession(model, providers=["CPUExecutionProvider"])
""",
    "infer.py": f"""
import hashlib, runpy
with open(model, "rb") as stream:
    sha = hashlib.sha256(stream.read()).hexdigest()
names = runpy.run_path({str(INFER)!r})
names["open_onnx"].__globals__["HERE"] = __import__("pathlib").Path(model).parent
about = {{"model": "m.onnx", "files": {{"m.onnx": {{"sha256": sha}}}}}}
names["open_onnx"](about, "CPUExecutionProvider")
""",
}


@pytest.fixture
def model(tmp_path):
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("way", "before"), [("need", None), ("need", ""), *((way, "0") for way in WAYS)]
)
def test_it_is_off_before_the_library_loads(way, before, model, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    quiet = {VARIABLE, "CI", "ORT_RUNNING_UNIT_TESTS"}  # each of them turns it off as well
    environment = {k: v for k, v in os.environ.items() if k not in quiet}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    if before is not None:
        environment[VARIABLE] = before
    code = WATCH + WAYS[way] + f"\nassert Watch.seen == [{OFF!r}], Watch.seen\n"
    command = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*onnxruntime*")), "a device id and queued events"


def test_what_is_known_to_send_is_off(monkeypatch):
    for name in NO_TELEMETRY:
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, SENDER, types.ModuleType(SENDER))
    silence()
    assert {name: os.environ[name] for name in NO_TELEMETRY} == {
        "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
        "ALBUMENTATIONS_NO_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    with pytest.raises(ImportError):
        importlib.import_module(SENDER)


OWN_CODE = """
import os
assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "1"
try:
    import openvino_telemetry
except ImportError:
    print("silent")
"""


@pytest.mark.parametrize(
    "before",
    ["import kdcompile.api", "from kdcompile.core.optional import need; need('json', '', '')"],
)
def test_code_of_the_user_finds_it_off(before):
    environment = {k: v for k, v in os.environ.items() if k not in NO_TELEMETRY}
    command = [sys.executable, "-c", before + OWN_CODE]
    assert subprocess.check_output(command, env=environment, text=True) == "silent\n"


def test_the_command_line_turns_it_off_before_any_command(monkeypatch):
    called = []
    monkeypatch.setattr(optional, "silence", lambda: called.append("api"))
    monkeypatch.setattr(cli, "silence", lambda: called.append("silence"))
    monkeypatch.setattr(cli, "_run", lambda stop: called.append("run"))
    monkeypatch.setattr(cli, "begin", lambda level: None)
    cli.main()
    assert called == ["silence", "run"]


def test_openvino_is_imported_without_its_sender():
    pytest.importorskip("openvino")
    code = "from kdcompile.backends.openvino_ import OpenVino; OpenVino().version; import sys; "
    code += "assert 'openvino_telemetry.main' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_imports_it_another_way():
    found = {}
    sources = (path for name in SOURCES for path in (ROOT / name).rglob("*.py"))
    for path in (p for p in sources if ".kdcompile" not in p.parts):  # where an example was built
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                found[path.name] = found.get(path.name, 0) + 1
    assert found == dict.fromkeys(ALONE, 1)
