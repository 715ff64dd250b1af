"""A real TensorRT parser and compiler takes the students' networks, for every RTX generation."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from kdcompile.backends.tensorrt_rtx_ import compile_check
from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.fp8 import insert_fp8
from kdcompile.calib.mixed import mixed_model
from kdcompile.calib.qdq import choose_layers, insert_qdq
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.factory import build_model, load_weights
from kdcompile.models.shrunk import student_from_architecture

ROOT = Path(__file__).parents[2]
ALL = ("8.0", "8.6", "8.9", "12.0")
STUDENTS = {
    "digits": ("model.py:build", ROOT / "examples" / "digits", [1, 1, 64, 64]),
    "shanghaitech": ("kdcompile.models.csrnet:build", ROOT, [1, 3, 128, 128]),
}


@pytest.fixture(scope="module", params=STUDENTS)
def calibrated(request, tmp_path_factory):
    """A student and its table: the trained one of ShanghaiTech, an untrained one of digits."""
    factory, folder, shape = STUDENTS[request.param]
    teacher = build_model(factory, folder)
    weights = ROOT / "benchmarks" / "models" / "csrnet_quarter_sha.safetensors"
    if request.param == "shanghaitech":
        with safe_open(weights, "np") as stream:
            architecture = json.loads(stream.metadata()["architecture"])
        student = student_from_architecture(teacher, architecture, folder)
        load_weights(student, weights)
    else:
        student = teacher
    path = tmp_path_factory.mktemp(request.param) / "student.onnx"
    model = onnx_from_module(student.eval(), path, (shape, shape, shape), 18, 9, "density")
    rng = np.random.default_rng(0)
    images = [rng.standard_normal(shape, dtype=np.float32) for _ in range(2)]
    return path, model, calibrate(model, "0" * 64, iter(images), [("a", ""), ("b", "")], "minmax")


def _compiled(model, folder, capabilities=ALL):
    path = folder / "network.onnx"
    onnx.save(model, path)
    return compile_check(path, capabilities)


@pytest.mark.parametrize("storage", ["int8", "float"])
def test_explicit_pairs_compile(calibrated, storage, tmp_path):
    _, model, table = calibrated
    for found in _compiled(insert_qdq(model, table, storage), tmp_path):
        assert found["ok"], found


def test_mixed_networks_compile(calibrated, tmp_path):
    _, model, table = calibrated
    half = [layer.name for layer in choose_layers(model, None)][::2]
    for found in _compiled(mixed_model(model, table, "int8", half), tmp_path):
        assert found["ok"], found


def test_fp8_compiles_where_the_gpu_has_it_and_is_refused_for_the_others(calibrated, tmp_path):
    _, model, table = calibrated
    network = insert_fp8(model, table)
    assert [f["ok"] for f in _compiled(network, tmp_path, ("8.9", "12.0"))] == [True, True]
    (refused,) = _compiled(network, tmp_path, ("8.6",))
    assert refused["ok"] is False
    reason = "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes"
    assert reason in refused["errors"][0]["message"]
    assert "fp8_e4m3" in refused["errors"][0]["message"]
