"""`[[teachers]]`: how the spec reads it, and what a change of one of them does to a build."""

import re

import pytest
from staged_ground import write_build
from written_build import plan_of, to_do

from kdcompile.config.load import load_spec
from kdcompile.config.template import init_template
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.passes.keys import key_parts
from kdcompile.targets import load as load_target

MORE = """
[[teachers]]
model = "model.py:build"
weights = "second.safetensors"
[[teachers]]
model = "model.py:build"
weights = "third.safetensors"
"""


@pytest.fixture
def folder(folder_built):
    """A folder that is built and has two more teachers, built again."""
    for name in ("second", "third"):
        (folder_built / f"{name}.safetensors").write_bytes(name.encode())
    path = folder_built / "kdcompile.toml"
    path.write_text(path.read_text() + MORE)
    plan_of(folder_built).make("bundle")
    return folder_built


def test_paths_are_of_the_spec_or_of_the_current_folder(folder, tmp_path, monkeypatch):
    names = [teacher.weights for teacher in load_spec(folder / "kdcompile.toml").teachers]
    assert names == [folder / "second.safetensors", folder / "third.safetensors"]
    monkeypatch.chdir(tmp_path)
    given = 'teachers=[{model = "model.py:build", weights = "here.pt"}]'
    (one,) = load_spec(folder / "kdcompile.toml", [given]).teachers
    assert (one.model, one.weights) == ("model.py:build", tmp_path / "here.pt")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("teachers=[{model = 'm.py:f'}]", "teachers.0: weights is missing"),
        ("teachers=[{model = 'm.py:f', weights = 'w', weight = 'v'}]", "unknown key"),
        ("teachers.0.weights=w", "'teachers' is not a section"),
    ],
)
def test_a_teacher_that_is_none_is_refused(folder, given, said):
    with pytest.raises(KDError, match=re.escape(said)) as caught:
        load_spec(folder / "kdcompile.toml", [given])
    assert caught.value.fix


def test_what_was_made_with_them_is_not_to_do(folder):
    assert to_do(plan_of(folder)) == {}


def test_other_weights_of_one_are_why_the_student_is_trained_again(folder):
    (folder / "third.safetensors").write_bytes(b"another")
    told = to_do(plan_of(folder))
    assert told["distill"] == ["teachers.2: weights changed"]
    assert {"teacher", "search"}.isdisjoint(told)


def test_a_teacher_more_or_less_is_why_the_student_is_trained_again(folder):
    path = folder / "kdcompile.toml"
    text = path.read_text()
    path.write_text(text[: text.rindex("[[teachers]]")])
    assert to_do(plan_of(folder))["distill"] == ["spec: teachers.2 is gone"]
    path.write_text(text + MORE)
    told = to_do(plan_of(folder))["distill"]
    assert told == ["spec: teachers.3 is new", "spec: teachers.4 is new"]


def test_another_place_of_the_same_weights_changes_nothing(folder):
    (folder / "third.safetensors").rename(folder / "3.safetensors")
    path = folder / "kdcompile.toml"
    path.write_text(path.read_text().replace("third.", "3."))
    assert to_do(plan_of(folder)) == {}


@pytest.mark.parametrize("is_folder", [False, True])
def test_missing_weights_are_said_with_their_place(folder, is_folder):
    missing = folder / "third.safetensors"
    missing.unlink()
    if is_folder:
        missing.mkdir()
    with pytest.raises(KDError) as caught:
        plan_of(folder).found()
    assert (caught.value.code, caught.value.where) == ("weights-missing", str(missing))
    assert "--set" not in caught.value.fix  # there it would name the first teacher's


def test_a_search_that_distils_depends_on_them_and_a_scaling_does_not(tmp_path):
    load, target = write_build(tmp_path), load_target("cpu")
    weights = str(tmp_path / "teacher.safetensors")
    more = f"teachers=[{{model = 'model.py:build', weights = '{weights}'}}]"

    def parts(*sets):
        return key_parts(load(*sets), target, Hasher(tmp_path / "hashes.json"))["search"]

    search = ("student.family=search", "student.budget={macs=30000}")
    assert parts(*search, more) != parts(*search)
    assert parts("student.family=shrink", more) == parts("student.family=shrink")


def test_the_template_has_them_as_a_comment(tmp_path):
    (path,) = init_template(tmp_path)
    text = path.read_text()
    begin = text.index("# [[teachers]]")
    end = text.index("\n\n", begin)
    path.write_text(text[:begin] + re.sub(r"(?m)^# ", "", text[begin:end]) + text[end:])
    (one,) = load_spec(path).teachers
    assert (one.model, one.weights) == ("other.py:build", tmp_path / "other.safetensors")


def test_a_recipe_that_needs_them_says_so_before_anything_runs(folder):
    path = folder / "kdcompile.toml"
    path.write_text(path.read_text().replace(MORE, ""))
    with pytest.raises(KDError) as caught:
        plan_of(folder, "distill.recipe=mixture").make("bundle")
    assert caught.value.code == "recipe-needs"
    assert "[[teachers]]" in caught.value.fix
    path.write_text(path.read_text() + MORE)
    plan_of(folder, "distill.recipe=mixture").make("bundle")
