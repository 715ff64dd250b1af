"""The ladder of a build: from its spec and artifacts, on validation images."""

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import numpy_helper
from small_digits import AT_64
from torch import nn

import kdcompile.examples.digits as example
from kdcompile import api
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.store import Artifact
from kdcompile.debug import sources
from kdcompile.debug.locate import locate
from kdcompile.debug.variants import climb
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.targets import load


@pytest.fixture(scope="module")
def network():
    """A little counter, in the place of the student."""
    torch.manual_seed(0)
    last = nn.Conv2d(8, 1, 1)
    nn.init.constant_(last.weight, 0.01)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), last
    ).eval()


@pytest.fixture(scope="module")
def spec():
    path = Path(example.__file__).with_name("kdcompile.toml")
    sets = ("data.train=train:4", "data.val=val:24", "data.test=test:2", *AT_64)
    return load_spec(path, sets, None)


@pytest.fixture(scope="module")
def made(faults, photos, network, spec, tmp_path_factory):
    """Artifacts of export, calibrate and compile."""
    folder = tmp_path_factory.mktemp("build")
    model = onnx_from_module(network, folder / "student.onnx", spec.export.profile)
    onnx.save(faults.in_precision(model, "int8", photos(8)), folder / "student_int8.onnx")
    onnx.save(onnx.load(folder / "student_int8.onnx"), folder / "model.onnx")
    (folder / "choice.json").write_text(json.dumps({"precision": "int8"}))
    files = {path.name: file_sha256(path) for path in folder.iterdir()}
    parts = {
        "distill": (), "export": ("student.onnx",), "calibrate": ("student_int8.onnx",),
        "compile": ("model.onnx", "choice.json"),
    }  # fmt: skip
    return {
        stage: Artifact(stage, "key", folder, {name: files[name] for name in names}, {})
        for stage, names in parts.items()
    }


@pytest.fixture(autouse=True)
def the_student(monkeypatch, network):
    monkeypatch.setattr(sources, "load_student", lambda spec, distilled: network)


def test_a_build_climbs_every_rung(spec, made):
    with sources.spec_ladder(spec, load("cpu"), made, None, 6) as ladder:
        steps = climb(ladder)
    found = {step.name: step.verdict for step in steps}
    assert found == {"pytorch": "reference", "exported": "passed", "onnx": "passed",
                     "int8": "passed", "engine": "passed"}  # fmt: skip
    assert ladder.tolerance.n == 24
    assert ladder.source == "6 of 24 validation images"
    assert all(step.metric is not None for step in steps)


def test_a_failed_export_is_climbed_to_its_onnx_file(spec, made, network, monkeypatch):
    written = sources.onnx_from_module

    def wrong(module, path, *more):
        model = written(module, path, *more)
        weight = next(t for t in model.graph.initializer if t.name == "2.weight")
        values = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(-values, weight.name))
        onnx.save(model, path)
        return model

    monkeypatch.setattr(sources, "onnx_from_module", wrong)

    def refused(stage):
        raise KDError("export-parity", "the student's ONNX differs", fix="look for operators")

    plan = SimpleNamespace(
        make=refused, found=lambda: made, spec=spec, target=load("jetson"), board=None
    )
    monkeypatch.setattr(api, "planned", lambda *_: plan)
    with api.open_ladder(None, None, {}) as ladder:
        steps = climb(ladder)
        assert [s.verdict for s in steps] == ["reference", "passed", "failed", "absent", "absent"]
        found = locate(ladder, ladder.rungs[1], ladder.rungs[2], steps[2])
    assert found.named.module == "2"


def test_other_failures_of_a_build_are_its_own(monkeypatch):
    def refused(stage):
        raise KDError("calib-empty", "no image", fix="list some")

    monkeypatch.setattr(api, "planned", lambda *_: SimpleNamespace(make=refused))
    with pytest.raises(KDError, match="no image"):
        api.parity()
