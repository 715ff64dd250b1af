"""The same network and images, in files or as objects, train the same student to the bit."""

import pytest
from bad_inputs import SPEC, project

from kdcompile import api
from kdcompile.config.load import load_spec
from kdcompile.data.splits import SPLITS, load_splits
from kdcompile.models.factory import load_teacher

STUDENT, DISTILL = {"budget": {"width": 0.5}}, {"recipe": "kd", "steps": 3, "batch": 2, "crop": 16}
SHRUNK = ["student.family=shrink", "student.init=inherit", "student.budget={ width = 0.5 }",
          "distill.recipe=kd", "distill.steps=3"]  # fmt: skip


@pytest.fixture
def spec(tmp_path):
    folder = tmp_path / "crowd"
    folder.mkdir()
    project(folder, spec=SPEC)
    return load_spec(folder / "kdcompile.toml", SHRUNK)


@pytest.mark.slow
def test_a_student_that_counts(spec, tmp_path):
    splits = load_splits(spec.data, spec.folder)
    data = {
        name: [(photo.pixels(3), photo.points) for photo in getattr(splits, name)]
        for name in SPLITS
    }
    objects = {
        "teacher": load_teacher(spec), "data": data, "task": "counting", "target": "cpu",
        "work": tmp_path / "work", "student": STUDENT, "distill": DISTILL,
    }  # fmt: skip
    first = api.distill(spec)
    second = api.distill(**objects)
    assert second.files["student.safetensors"] == first.files["student.safetensors"]
    assert second.path.is_relative_to(tmp_path / "work" / "Counter")
    assert list(api.planned(None, objects).found()) == ["teacher", "search", "distill"]
    longer = api.planned(None, objects | {"distill": DISTILL | {"steps": 4}})
    assert longer.why("distill", longer.found()) == ["spec: distill.steps 3 -> 4"]
    raised = api.planned(None, objects | {"version": "2"})
    assert not raised.found()
