"""The worker's build on a real parser and compiler: TensorRT-RTX, whose API is that of 11.

It needs no GPU to build, so only the CUDA driver is played; its engines cannot be opened here.
"""

import json
import sys
import types

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kdcompile.remote.agent.onnx_file import OnnxFile
from kdcompile.remote.agent.worker import Worker

pytestmark = pytest.mark.rtx
SHAPES = [[1, 3, 8, 8], [1, 3, 16, 24], [1, 3, 32, 32]]


@pytest.fixture
def build(monkeypatch, tmp_path, request):
    """`build(onnx, precision, ...)` -> the answer of a worker on `tensorrt_rtx`."""
    rtx = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    module = types.SimpleNamespace(**{**vars(rtx), "__version__": "11.4.0"})
    request.getfixturevalue("played_driver").capability = [8, 9]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    served = Worker("tensorrt")

    def make(path, precision, **more):
        values = {"onnx": str(path), "engine": str(tmp_path / "e.plan"), "precision": precision}
        return served.answer({"id": 1, "op": "build", **values, **more})

    return make


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_builds(build, onnx_files, tmp_path, precision):
    files = onnx_files([1, 3, "height", "width"])
    built = build(files[precision], precision, profile=SHAPES, optimization_level=2)["ok"]
    assert built["bytes"] == (tmp_path / "e.plan").stat().st_size > 1000
    assert built["layers"] is None
    assert built == json.loads((tmp_path / "e.plan.json").read_text())
    assert (tmp_path / "e.plan").read_bytes()[:4] == b"vtrt"


def test_options(build, onnx_files):
    path = onnx_files()["fp16"]
    error = build(path, "fp16", dla=0)["error"]
    assert (error["code"], "has 0" in error["message"]) == ("option-refused", True)
    assert build(path, "fp16", dla=-1)["error"]["code"] == "option-refused"


def test_profile_is_needed(build, onnx_files):
    path = onnx_files([1, 3, "height", "width"])["fp32"]
    assert build(path, "fp32")["error"]["code"] == "profile-missing"


def test_operator_without_importer(build, onnx_files):
    path = onnx_files()["fp32"]
    model = onnx.load(path)
    node = helper.make_node("Mystery", ["raw"], ["density"], name="odd", domain="my.domain")
    scopes = node.metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'head', 'odd']"
    model.graph.node[1].CopyFrom(node)
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    onnx.save(model, path)
    error = build(path, "fp32")["error"]
    assert error["code"] == "onnx-refused"
    assert error["message"].startswith("Mystery odd (module head): ")


def test_no_onnx(build, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no")
    error = build(tmp_path / "a.onnx", "fp32")["error"]
    assert error["code"] == "onnx-refused"


def test_asymmetric_by_its_own_parser(build, onnx_files, monkeypatch):
    path = onnx_files()["int8"]
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "z":
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3), "z"))
    onnx.save(model, path)
    assert build(path, "int8")["error"]["code"] == "qdq-asymmetric"
    monkeypatch.setattr(OnnxFile, "asymmetric", lambda self: None)
    error = build(path, "int8")["error"]
    assert error["code"] == "qdq-asymmetric"
    assert "QuantizeLinear node_of_qi" in error["message"]
    assert "zero point" in error["message"]
