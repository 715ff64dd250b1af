"""The spec that a Python caller's arguments stand for."""

import numpy as np
import pytest
from torch import nn

from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.models.factory import load_teacher
from kdcompile.passes.inputs import WORK, spec_of

SPEC = """
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "imagefolder"
root = "."
[student]
budget = { width = 0.5 }
"""
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 1), np.uint8)
DATA = {
    name: [(IMAGES[number], number) for number in numbers]
    for name, numbers in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5)))
}


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """The path of a spec in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "kdcompile.toml"
    path.write_text(SPEC)
    return path


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def of_objects(**more):
    return spec_of(None, {"teacher": network(), "data": DATA, "task": "classification"} | more)


def test_a_path_a_folder_and_the_current_folder_are_the_same(spec):
    plain = load_spec(spec)
    for given in (spec, spec.parent, str(spec), None, plain):
        found = spec_of(given, {"target": None})
        assert (found, found.path) == (plain, spec)


def test_fields_by_keyword_are_those_of_set(spec):
    found = spec_of(
        spec,
        {
            "target": "cpu", "task": "regression", "seed": 3, "distill": {"steps": 7, "lr": 0.5},
            "student": {"budget": {"speedup": 4}}, "gates": {"size_mb": {"max": 1.5}},
            "data": {"mean": [0.0] * 3, "unlabelled": 'a "b"'}, "sets": ("distill.lr=0.25",),
        },
    )  # fmt: skip
    sets = [
        "task.kind=regression", "seed=3", "distill.steps=7", "distill.lr=0.25",
        "student.budget={ speedup = 4 }", "gates.size_mb={ max = 1.5 }",
        "data.mean=[0.0, 0.0, 0.0]", """data.unlabelled='a "b"'""",
    ]  # fmt: skip
    assert found == load_spec(spec, sets, "cpu")


def test_objects_become_an_ordinary_spec(spec):
    found, again = of_objects(), of_objects(teacher=network())
    assert (found.name, found.folder) == ("Sequential", spec.parent / WORK / "Sequential")
    assert found.export.shape == [1, 1, 12, 16]
    assert (found.distill.crop, found.distill.recipe) == (12, "kd")
    assert (found.data.mean, found.data.format) == ([0.0], "npz")
    assert isinstance(load_teacher(found), nn.Sequential)
    assert found.teacher.model == again.teacher.model
    assert found.teacher.weights != again.teacher.weights
    assert found.data == again.data


def test_what_the_caller_says_of_objects_is_taken(spec, tmp_path):
    found = of_objects(
        name="mine", work=tmp_path / "w", version="2", distill={"crop": 8, "recipe": "none"},
        export={"shape": [1, 1, 8, 8]}, data=DATA | {"mean": [0.5]}, target="cpu",
        student={"family": network(), "init": "random"}, teachers=[network()],
        sets=("seed=4",),
    )  # fmt: skip
    assert (found.folder, found.seed, found.target) == (tmp_path / "w" / "mine", 4, "cpu")
    assert (found.distill.crop, found.distill.recipe, found.data.mean) == (8, "none", [0.5])
    assert found.export.shape == [1, 1, 8, 8]
    assert found.student.family == found.teacher.model == found.teachers[0].model
    assert found.teacher.model != of_objects().teacher.model


def test_a_network_with_data_in_files(spec, tmp_path):
    data = {"format": "imagefolder", "root": "photos", "mean": [0.0], "std": [1.0]}
    found = spec_of(None, {"teacher": network(), "data": data, "export": {"shape": [1, 1, 8, 8]}})
    assert found.data.root == tmp_path / "photos"


@pytest.mark.parametrize(
    ("inputs", "code", "says"),
    [
        ({"distil": {"steps": 2}}, "spec-invalid", "did you mean 'distill'"),
        ({"distill": {"stepz": 2}}, "spec-invalid", "did you mean 'steps'"),
        ({"task": "clasification"}, "spec-invalid", "task.kind"),
    ],
)
def test_wrong_fields_beside_objects(spec, inputs, code, says):
    with pytest.raises(KDError) as caught:
        of_objects(**inputs)
    assert caught.value.code == code
    assert says in str(caught.value)


def test_what_does_not_go_together(spec):
    for given, inputs, code in (
        (load_spec(spec), {"target": "cpu"}, "inputs-twice"),
        (spec, {"version": "2"}, "inputs-unused"),
        (spec, {"teacher": network()}, "inputs-unused"),
        (spec, {"data": DATA}, "inputs-unused"),
        (spec, {"teachers": [network()]}, "inputs-unused"),
    ):
        with pytest.raises(KDError) as caught:
            spec_of(given, inputs)
        assert caught.value.code == code, inputs
