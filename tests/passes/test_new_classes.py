"""A site adds classes to a deployed student: from the spec to the report, and what is refused."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from new_classes import NAMES, NEW, OLD, archive, photos, project
from safetensors.torch import load_file

from kdcompile.bundle.manifest import read_bundle
from kdcompile.cli import cli
from kdcompile.core.errors import KDError

EVERY = range(OLD + NEW)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    project(folder)
    return folder


def call(command, folder, *sets, code=0, more=()):
    args = [command, str(folder), *more, "--json"]
    for value in sets:
        args += ["--set", value]
    found = CliRunner().invoke(cli, args, standalone_mode=True)
    assert found.exit_code == code, (found.output, found.exception)
    return found


def refused(site, *sets):
    """What `kdcompile distill` refuses, in words."""
    error = call("distill", site, *sets, code=1).exception
    assert isinstance(error, KDError), error
    return f"{error.code} {error.message} {error.fix}"


@pytest.fixture(scope="module")
def bundle(site):
    call("build", site, more=("-o", str(site / "dist")))
    return read_bundle(site / "dist")


def test_a_bundle_comes_of_it(bundle):
    details = bundle.report().details
    assert bundle.manifest["classes"] == list(NAMES)
    parts = {row["class"]: row for row in details["by_class"]}
    assert set(parts) == set(NAMES)
    assert all(parts[name]["teacher_top1"] == 0 for name in NAMES[OLD:])
    assert all(parts[name]["student_top1"] > 0 for name in NAMES)


def test_the_teacher_is_judged_on_its_own_classes(bundle):
    teacher = bundle.report().details["teacher"]
    assert (teacher["n_val"], teacher["n_new"], teacher["output"]) == (6 * OLD, 6 * NEW, [OLD])
    assert teacher["val_top1"] > 0.9
    choice = bundle.report().details["choice"]
    assert choice["teacher_metric"] == teacher["val_top1"]


def test_the_accuracy_gate_asks_what_was_kept(bundle):
    report = bundle.report()
    gate = next(gate for gate in report.gates if gate.name == "accuracy")
    assert f"the {8 * OLD} of the teacher's classes" in gate.reason
    assert gate.measurements[0].n == 8 * OLD
    rows = report.details["predictions"]
    assert [row["taught"] for row in rows] == [row["true"] < OLD for row in rows]
    old = [row for row in rows if row["taught"]]
    right = np.mean([row["student"] == row["true"] for row in old])
    assert f"{right:.2%}" in gate.observed


def test_the_deployed_student_is_where_it_starts(site, bundle):
    distilled = bundle.report().details["distill"]
    assert distilled["initial"]["val_top1"] > 0.5  # four of six classes are known already
    found = distilled["flips"]
    assert found["validation_photos"] == 6 * (OLD + NEW)
    gained = (found["better"] - found["worse"]) / found["validation_photos"]
    assert gained == pytest.approx(distilled["val_top1"] - distilled["initial"]["val_top1"])
    page = (bundle.folder / "report.html").read_text()
    assert "flips: share worse" in page
    deployed = load_file(site / "deployed.safetensors")
    assert deployed["5.weight"].shape[0] == OLD


def test_a_student_of_the_teachers_classes_is_refused_the_new_ones(site):
    told = refused(site, "student.family=model.py:deployed")
    assert "labels-invalid" in told
    assert "the student's number of outputs" in told


def test_a_recipe_that_compares_outputs_is_refused(site):
    told = refused(site, "distill.recipe=kd")
    assert "student-output" in told
    assert "class-relation" in told


def test_a_derived_student_has_no_room_for_new_classes(site):
    sets = ("student.family=shrink", "student.init=random")
    (site / "derived.toml").write_text(
        (site / "kdcompile.toml").read_text().replace('weights = "deployed.safetensors"\n', "")
    )
    told = refused(site / "derived.toml", *sets)
    assert "recipe-needs" in told
    assert "labels-invalid" in refused(site / "derived.toml", *sets, "distill.recipe=kd")


def test_old_photos_must_be_there_to_judge_by(site):
    new = range(OLD, OLD + NEW)
    parts = photos(12, new, 0), photos(6, new, 1), photos(8, EVERY, 2)
    archive(site / "new.npz", *parts)
    told = refused(site, *(f"data.{s}=new.npz:{s}" for s in ("train", "val", "test")))
    assert "teacher-unjudged" in told


def test_weights_of_other_layers_are_still_refused(site):
    told = refused(site, f"student.weights={site / 'teacher.safetensors'}")
    assert "weights-mismatch" in told


def test_plain_fine_tuning_has_the_wider_student_too(site):
    found = call("distill", site, "distill.recipe=none", "distill.steps=4")
    assert json.loads(found.stdout)["steps"] == 4
