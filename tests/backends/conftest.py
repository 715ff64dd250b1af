"""A tiny counting network as ONNX in each precision, its kit, and a played TensorRT."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import onnx
import played_tensorrt as played
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.core import plugins
from kdcompile.gates.registry import find_gate
from kdcompile.remote.agent.worker import Worker
from kdcompile.remote.kit import write_kit
from kdcompile.targets import load
from kdcompile.tasks.task import find_task

WEIGHT = (np.random.default_rng(0).standard_normal((1, 3, 3, 3)) * 0.1).astype(np.float32)


def model(nodes, weights, shape, opset=17):
    """One input `image`, one output `density`, at half the resolution."""
    size = [None, None] if isinstance(shape[2], str) else [shape[2] // 2, shape[3] // 2]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, [1, 1, *size])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def convolution(image, weight, out):
    return helper.make_node(
        "Conv", [image, weight], [out], name="head", pads=[1] * 4, strides=[2, 2]
    )


def fp32(shape, weight=WEIGHT):
    nodes = [convolution("image", "w", "raw"), helper.make_node("Abs", ["raw"], ["density"])]
    return model(nodes, {"w": weight}, shape)


def fp16(shape):
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
        convolution("half", "w", "raw"),
        helper.make_node("Abs", ["raw"], ["absolute"]),
        helper.make_node("Cast", ["absolute"], ["density"], to=TensorProto.FLOAT),
    ]
    return model(nodes, {"w": WEIGHT.astype(np.float16)}, shape)


def int8(shape, image_scale=4 / 127):
    scale = np.float32(np.abs(WEIGHT).max() / 127)
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "si", "z"], ["qi"]),
        helper.make_node("DequantizeLinear", ["qi", "si", "z"], ["di"]),
        helper.make_node("DequantizeLinear", ["qw", "sw", "z"], ["dw"]),
        convolution("di", "dw", "raw"),
        helper.make_node("Abs", ["raw"], ["density"]),
    ]
    weights = {
        "si": np.float32(image_scale),
        "sw": scale,
        "z": np.int8(0),
        "qw": np.clip(np.round(WEIGHT / scale), -127, 127).astype(np.int8),
    }
    return model(nodes, {k: np.asarray(v) for k, v in weights.items()}, shape)


FIXED, DYNAMIC = [1, 3, 16, 24], [1, 3, "height", "width"]


@pytest.fixture
def onnx_files(tmp_path: Path):
    """`onnx_files(shape)` -> {precision: file}."""

    def write(shape=FIXED, prefix="student"):
        found = {}
        for name, build in (("fp32", fp32), ("fp16", fp16), ("int8", int8)):
            found[name] = tmp_path / f"{prefix}_{name}.onnx"
            onnx.save(build(shape), found[name])
        return found

    return write


LIMITS = {  # of every gate that a board decides
    name: find_gate(name).settings.board_limit
    for name in plugins.names("gates")
    if find_gate(name).settings.board_limit
}


@pytest.fixture
def make_kit(tmp_path):
    """`make_kit(files, ...)` -> the folder `kit/`, for the default Jetson."""

    def make(files, sides=((16, 24), (16, 24)), min_sqnr_db=20.0, max_mb=1.0, **more):
        rng = np.random.default_rng(5)
        inputs = [rng.normal(size=(1, 3, *side)).astype(np.float32) for side in sides]
        outputs = {p: [open_session(path)(image) for image in inputs] for p, path in files.items()}
        for name in ("calibration", "preprocess"):
            (tmp_path / f"{name}.json").write_text("{}")
        gates = {
            "accuracy": {"required": True, "metric": "mae"},
            "parity": {"required": True, "min_sqnr_db": min_sqnr_db},
            "speedup": {"required": True, "min": 6.5},
            "size_mb": {"required": True, "max": max_mb},
        }
        write_kit(
            tmp_path,
            load("jetson"),
            files,
            tmp_path / "calibration.json",
            tmp_path / "preprocess.json",
            (gates, LIMITS),
            (inputs, outputs),
            find_task("counting"),
            profile=([1, 3, 16, 16], [1, 3, *sides[0]], [1, 3, 32, 32]),
            predicted="int8",
            **more,
        )
        return tmp_path / "kit"

    return make


@pytest.fixture
def played_driver(monkeypatch):
    """The CUDA driver that `worker` finds: `Driver` of tests/support/played_tensorrt.py."""
    made = played.Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    return made


@pytest.fixture
def played_tensorrt(monkeypatch, played_driver):
    """`played_tensorrt(version)` -> (the module that `import tensorrt` finds, its calls)."""

    def make(version):
        calls = []
        module = played.module(version, calls, played_driver)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module, calls

    return make


@pytest.fixture
def board(played_tensorrt, tmp_path):
    """`board(version)` -> (ask, scene): a worker on a played TensorRT, and `m.onnx` to build."""

    def make(version):
        module, _ = played_tensorrt(version)
        (tmp_path / "m.onnx").write_bytes(b"graph")
        served = Worker("tensorrt")
        return (lambda op, **values: served.answer({"id": 1, "op": op, **values})), module.scene

    return make


@pytest.fixture
def order(tmp_path):
    """`order(precision, ...)` -> the values of a `build` of `m.onnx` to `e.plan`."""
    shapes = [[1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 64, 64]]
    files = {"onnx": str(tmp_path / "m.onnx"), "engine": str(tmp_path / "e.plan")}
    return lambda precision="int8", **more: {
        **files, "precision": precision, "profile": shapes, **more
    }  # fmt: skip
