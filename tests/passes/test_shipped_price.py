"""The price of an int8 or mixed network: of its own file, as it is deployed."""

import json
import math
from dataclasses import asdict, replace

import onnx
import pytest
from onnx_graphs import chain, residual, table_of

from kdcompile import targets
from kdcompile.calib.mixed import mixed_model
from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.store import Store
from kdcompile.data.preprocess import Preprocess
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.predict import estimate, ratio_factor
from kdcompile.onnx_graph.in_graph import in_graph
from kdcompile.passes import shipped_price
from kdcompile.passes.shipped_price import takes_flags, with_file
from kdcompile.passes.verify import predictions

JETSON = targets.load("jetson")
SHAPE = [1, 3, 16, 16]
MEANS = (0.5,) * 3, (0.2,) * 3
PREPROCESS = Preprocess(3, *MEANS, (16, 16), (16, 16))
STUDENT, TEACHER = chain(4), chain(4, 64)
MIXED = mixed_model(STUDENT, table_of(STUDENT), "int8", ["c1", "c2", "c3"])


def step(root, preprocess, mixed=MIXED):
    """Of a build that ships the mixed network."""

    def write(folder):
        (folder / "preprocess.json").write_text(json.dumps(PREPROCESS.to_json()))
        onnx.save(TEACHER, folder / "teacher.onnx")
        onnx.save(mixed, folder / "student_mixed.onnx")
        (folder / "choice.json").write_text('{"precision": "mixed"}')
        return {}

    made = Store(root).make("export", "0" * 24, write)
    spec = Spec(
        teacher={"model": "model.py:build", "weights": "w.safetensors"},
        data={"format": "npz", "root": "."},
        export={"shape": SHAPE, "preprocess": preprocess},
    )
    return Step("verify", "1" * 24, spec, {"export": made, "compile": made})


def priced(before, made, target=JETSON):
    """With the price of the mixed network."""
    file = made.inputs["compile"].file("student_mixed.onnx")
    return with_file(before, file, made, target)


def known(validated=True):
    """What the stage `search` found before there was a mixed network."""

    def first(model, precision):
        return asdict(estimate(kernels_of(model, SHAPE, precision), JETSON, precision))

    student = {p: first(STUDENT, p) | {"validated": True} for p in ("fp16", "int8")}
    student["int8"]["validated"] = validated
    teacher = {"fp16": first(TEACHER, "fp16")}
    bands = {p: {"low": 1.0, "high": 2.0} for p in student}
    return {"teacher": teacher, "student": student, "speedups": bands}


def test_it_is_priced_by_its_own_kernels(tmp_path):
    before = known()
    found = priced(before, step(tmp_path, "host"))
    kernels = kernels_of(MIXED, SHAPE, "fp16")
    assert found["student"]["mixed"]["ms"] == estimate(kernels, JETSON, "fp16").ms
    assert found["student"]["mixed"]["ms"] != before["student"]["fp16"]["ms"]
    assert {p: found["student"][p] for p in before["student"]} == before["student"]
    prediction = predictions(found)["mixed"]
    assert prediction.teacher == before["teacher"]["fp16"]["ms"]
    low, high = prediction.speedup
    ratio = prediction.teacher / prediction.student
    assert math.sqrt(low * high) == pytest.approx(ratio)
    factor = ratio_factor(kernels_of(TEACHER, SHAPE, "fp16"), kernels, JETSON)
    assert high / ratio == pytest.approx(factor)


def test_what_takes_pixels_is_priced_so(tmp_path):
    ms = {
        where: priced(known(), step(tmp_path / where, where))["student"]["mixed"]["ms"]
        for where in ("host", "in-graph")
    }
    pixels = kernels_of(in_graph(MIXED, *MEANS), [1, 16, 16, 3], "fp16")
    assert ms["in-graph"] == estimate(pixels, JETSON, "fp16").ms != ms["host"]


@pytest.mark.parametrize(("own", "int8"), [(True, True), (True, False), (False, True)])
def test_it_is_validated_where_both_of_its_precisions_are(tmp_path, monkeypatch, own, int8):
    def backed(*of):
        return replace(estimate(*of), validated=own)

    monkeypatch.setattr(shipped_price, "estimate", backed)
    found = priced(known(int8), step(tmp_path, "host"))["student"]["mixed"]
    assert found["validated"] is (own and int8)


@pytest.mark.parametrize(
    ("version", "flags"),
    [("8.6.2", True), ("10.3", True), ("10.11", True), ("10.12", False), ("11", False),
     ("8.6..11", True), (None, False)],
)  # fmt: skip
def test_where_float32_may_become_half_by_a_flag(version, flags):
    assert takes_flags(replace(JETSON, backend=None, tensorrt=version)) is flags


def test_a_strongly_typed_build_keeps_the_sums_of_int8_layers_in_float32(tmp_path):
    blocks = residual()
    layers = ["stem", "a1", "a2", "b1", "b2"]
    made = step(tmp_path, "host", mixed_model(blocks, table_of(blocks), "int8", layers))
    strong = replace(JETSON, backend=None, tensorrt="10.13")
    weak, found = (priced(known(), made, on)["student"]["mixed"]["ms"] for on in (JETSON, strong))
    assert found > weak
