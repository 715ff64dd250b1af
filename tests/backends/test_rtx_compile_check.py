import importlib

import onnx
import pytest
from onnx import helper

from kdcompile.backends import tensorrt_rtx_
from kdcompile.backends.tensorrt_rtx_ import LABEL, compile_check

SHAPES = ([1, 3, 8, 8], [1, 3, 16, 24], [1, 3, 32, 32])


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_compiles(rtx, onnx_files, precision):
    found = compile_check(onnx_files()[precision])
    assert [f["capability"] for f in found] == ["8.0", "8.6"]
    for check in found:
        assert check["ok"] is True
        assert check["errors"] == []
        assert check["check"] == LABEL
        assert check["engine_bytes"] > 1000


@pytest.mark.rtx
def test_dynamic_needs_a_profile(rtx, onnx_files):
    path = onnx_files([1, 3, "height", "width"])["int8"]
    assert compile_check(path, ("8.6",), SHAPES)[0]["ok"] is True
    (refused,) = compile_check(path, ("8.6",))
    assert refused["ok"] is False
    assert refused["errors"][0]["node"] == "image"


@pytest.mark.rtx
def test_unsupported_operator_is_named(rtx, onnx_files):
    path = onnx_files()["fp32"]
    model = onnx.load(path)
    model.graph.node[1].CopyFrom(
        helper.make_node("Mystery", ["raw"], ["density"], name="strange", domain="my.domain")
    )
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    onnx.save(model, path)
    (check,) = compile_check(path, ("8.6",))
    assert check["ok"] is False
    assert check["engine_bytes"] is None
    assert check["errors"][0]["node"] == "strange (Mystery)"


@pytest.mark.rtx
def test_unknown_capability(rtx, onnx_files):
    (check,) = compile_check(onnx_files()["fp32"], ("8.7",))  # Orin, which it does not compile for
    assert check["ok"] is False
    assert "8.7" in check["errors"][0]["message"]


@pytest.mark.rtx
def test_not_a_model(rtx, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no")
    (check,) = compile_check(tmp_path / "a.onnx", ("8.6",))
    assert check["ok"] is False
    assert check["errors"]


def test_absent_library_is_skipped_not_passed(monkeypatch, tmp_path):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    found = tensorrt_rtx_.compile_check(tmp_path / "a.onnx", ("8.0", "8.6"))
    assert [f["ok"] for f in found] == [None, None]
    assert "tensorrt_rtx" in found[0]["skipped"]
