"""A report, and the artifacts that a bundle is made of, with a network small enough to read."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdcompile.config.spec import Spec, Task
from kdcompile.config.step import Step
from kdcompile.core.files import write_json
from kdcompile.core.report import GateResult, Measurement, Report, overall
from kdcompile.data.preprocess import Preprocess

FIXED_GREY = Preprocess(1, (0.4,), (0.3,), (32, 48), (32, 48))
DYNAMIC_RGB = Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (24, 24), (64, 80))


def tiny_onnx(channels, fixed_hw=None):
    """One convolution of stride 4; each output cell is a weighted sum of 4 x 4 pixels."""
    weight = np.random.default_rng(3).normal(size=(1, channels, 4, 4)).astype(np.float32)
    height, width = fixed_hw or ("height", "width")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["density"], strides=[4, 4])],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, height, width])],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, [1, 1, None, None])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def a_measurement(name, value, unit, **more):
    return Measurement(
        name, value, unit, "host", machine="a <b>CPU</b>", backend="onnxruntime",
        backend_version="1.20", precision="int8", mode="alternating", **more,
    )  # fmt: skip


def build_report(accuracy="passed", **details):
    mae = a_measurement("student_mae", 1.25, "people", low=1.0, high=1.5, n=3)
    gates = (
        GateResult("accuracy", accuracy, "host", True, "<= 5 %", "+3.1 %", "why | so", (mae,)),
        GateResult("speedup", "pending", "device", True, ">= 3x", "4x here", "no board", ()),
    )
    verdict, code = overall(gates)
    examples = [
        {"name": f"{kind}.jpg", "kind": kind, "true": 4, "predicted": 3.5, "teacher": 4.1}
        for kind in ("best", "median", "worst")
    ]
    values = {
        "predictions": [
            {"name": f"{n}.jpg", "true": n, "teacher": n + 0.5, "student": n - 1.0}
            for n in (1, 4, 9)
        ],
        "by_density": [
            {"low": 0, "high": 5, "n": 2, "teacher_mae": 0.5, "student_mae": 1.0},
            {"low": 5, "high": 10, "n": 1, "teacher_mae": 0.5, "student_mae": 1.0},
        ],
        "teacher": {"val_mae": 0.7, "params": 1234567},
        "distill": {"recipe": "skt", "steps": 20, "dropped": []},
        "choice": {
            "precision": "int8",
            "basis": "measured",
            "candidates": [
                {"precision": "fp32", "latency_ms": 3.0, "evidence": "host", "val_metric": 1.1,
                 "passed": True, "why": "slower"},
                {"precision": "int8", "latency_ms": 1.0, "evidence": "host", "val_metric": 1.2,
                 "passed": True, "why": "fastest that passes"},
            ],
        },
        "calibration": {"calibrator": "entropy", "worst": [{"tensor": "t", "share": 0.1}]},
        "parity": {"student": {"sqnr_db": 90.0}},
        "examples": examples,
        "dropped": [{"name": "a.jpg", "split": "val", "twin": "test/b.jpg"}],
        "max_test": 3,
        "test_photos": 20,
    }  # fmt: skip
    environment = {"python": "3.11", "libraries": {"torch": "2.8"}}
    return Report(
        "crowd", "jetson", verdict, code, gates, (mae,), environment, {**values, **details}
    )


METRICS = [
    {"step": 0, "loss": 2.0, "terms": {"hard": 1.5, "soft": 0.5}, "lr": 1e-3, "ms": 9.0},
    {"step": 10, "loss": 1.0, "terms": {"hard": 0.8, "soft": 0.2}, "lr": 1e-3, "ms": 9.0,
     "val_mae": 3.0, "val_rmse": 4.0},
    {"step": 20, "loss": 0.5, "terms": {"hard": 0.4, "soft": 0.1}, "lr": 1e-4, "ms": 9.0,
     "val_mae": 1.5, "val_rmse": 2.0},
]  # fmt: skip


def save_examples(folder, channels):
    rng = np.random.default_rng(0)
    for kind in ("best", "median", "worst"):
        np.savez(
            folder / f"example_{kind}.npz",
            pixels=rng.integers(0, 256, (30, 40, channels), dtype=np.uint8),
            student=rng.random((8, 12), dtype=np.float32),
            teacher=rng.random((8, 12), dtype=np.float32),
        )


def make_inputs(store, preprocess, report):
    """Finished artifacts of the stages that the bundle takes."""
    fixed = preprocess.min_hw if preprocess.min_hw == preprocess.max_hw else None

    def distill(folder):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
        return {}

    def calibrate(folder):
        write_json(folder / "calibration.json", {"tensors": {}})
        write_json(folder / "audit.json", {"tensors": {}})
        return {}

    def compile_(folder):
        onnx.save(tiny_onnx(preprocess.channels, fixed), folder / "model.onnx")
        write_json(folder / "preprocess.json", preprocess.to_json())
        choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1.20"}
        write_json(folder / "choice.json", choice)
        (folder / "kit/nested").mkdir(parents=True)
        (folder / "kit/nested/build.py").write_text("pass\n")
        return {}

    def verify(folder):
        write_json(folder / "report.json", report.to_json())
        save_examples(folder, preprocess.channels)
        return {}

    builders = {"distill": distill, "calibrate": calibrate, "compile": compile_, "verify": verify}
    return {stage: store.make(stage, "0" * 24, build) for stage, build in builders.items()}


def build_step(store, preprocess=FIXED_GREY, report=None, key="1" * 24):
    inputs = make_inputs(store, preprocess, report or build_report())
    spec = Spec.model_construct(task=Task()).at(Path("crowd/kdcompile.toml"))
    return Step("bundle", key, spec, inputs)


@pytest.fixture(scope="session")
def make_step():
    return build_step


@pytest.fixture(scope="session")
def a_report():
    return build_report


@pytest.fixture(scope="session")
def metrics():
    return METRICS


@pytest.fixture(scope="session")
def write_examples():
    return save_examples


@pytest.fixture(scope="module", params=[FIXED_GREY, DYNAMIC_RGB], ids=["fixed-grey", "dynamic-rgb"])
def preprocess(request):
    return request.param
