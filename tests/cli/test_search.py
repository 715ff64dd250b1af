"""`kdcompile search` and `plan` for a student that is searched for: text, JSON, refusals."""

import json
import re

import pytest
from click.testing import CliRunner
from searching import SETS, searched
from staged_ground import write_build

from kdcompile.cli import cli
from kdcompile.core.errors import KDError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def artifact(folder):
    return searched(write_build(folder))[1]


def _command(folder, *words):
    args = [*words, str(folder), *(w for value in SETS for w in ("--set", value))]
    return CliRunner().invoke(cli, args)


def test_the_command_prints_the_front_and_why(folder, artifact):
    found = _command(folder, "search")
    assert found.exit_code == 0, found.output
    assert "budget macs = 30000" in found.stdout
    assert "> the choice   * on the front" in found.stdout
    assert len(re.findall(r"^>  ", found.stdout, re.MULTILINE)) == 1
    for sentence in artifact.json("explanation.json"):
        assert f"- {sentence}" in found.stdout
    assert str(artifact.path) in found.stdout


def test_the_command_gives_the_record_as_json(folder, artifact):
    found = _command(folder, "search", "--json")
    told = json.loads(found.stdout)
    assert told["search"] == artifact.json("search.json")
    assert told["macs"] == artifact.meta["macs"]


def test_the_plan_has_the_costs_of_the_student_that_was_found(folder, artifact):
    found = _command(folder, "plan", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["estimate"] == artifact.json("estimate.json")
    assert {s["stage"]: s["key"] for s in told["steps"]}["search"] == artifact.key


def test_students_that_are_not_searched_for_are_not_timed(folder):
    args = ["search", str(folder), "--target", "cpu", "--measure", "2"]
    found = CliRunner().invoke(cli, args)
    error = found.exception
    assert isinstance(error, KDError)
    assert error.code == "measure-unsearched"
    assert "student.family=search" in error.fix
    given = f"student.weights={folder / 'teacher.safetensors'}"
    sets = [w for value in (*SETS, "student.init=file", given) for w in ("--set", value)]
    error = CliRunner().invoke(cli, [*args, *sets]).exception
    assert error.code == "measure-unsearched"
    assert "a student given as a file" in error.message
    assert 'student.init = "inherit"' in error.fix


def test_explaining_a_training_trains_nothing(folder, artifact):
    before = sorted((folder / ".kdcompile").glob("*/*/artifact.json"))
    found = _command(folder, "distill", "--explain", "--set", "seed=3")
    assert isinstance(found.exception, KDError)
    assert found.exception.code == "search-to-do"
    assert sorted((folder / ".kdcompile").glob("*/*/artifact.json")) == before
    assert _command(folder, "distill", "--explain").exit_code == 0
