"""Where a student starts, and that the report says so."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, safe_open
from small_digits import AT_64

from kdcompile.cli import cli

SETS = [
    *AT_64,
    "distill.steps=3",
    "distill.evaluations=1",
    "data.train=train:32",
    "data.val=val:24",
    "data.test=test:4",
    "student.crops=16",
]  # fmt: skip


def _distill(folder, *sets):
    args = ["distill", str(folder), "--target", "jetson", "--json"]
    for value in (*SETS, *sets):
        args += ["--set", value]
    found = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    return told, load_file(f"{told['path']}/student.safetensors")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "crowd"
    CliRunner().invoke(cli, ["init", "--example", "digits", str(folder)])
    return folder


@pytest.fixture(scope="module")
def inherited(example):
    return _distill(example)


def test_an_inherited_student_starts_far_ahead(example, inherited):
    told, _ = inherited
    random, _ = _distill(example, "student.init=random")
    assert told["initial"]["val_mae"] < 0.5 * random["initial"]["val_mae"]
    assert random["inherit"] is None
    judged = told["inherit"]["validation"]
    assert judged["start"] == pytest.approx(told["initial"]["val_mae"])
    assert judged["start"] < 0.5 * judged["constant"]
    assert (judged["photos"], judged["metric"]) == (24, "mae")
    assert "attempts" not in told["inherit"]
    layers = told["inherit"]["layers"]
    assert all(0 <= layer["relative_error"] < 1 for layer in layers)
    assert {layer["kept"] for layer in layers} <= {16, 32, 1}


def test_the_first_row_is_the_start(inherited):
    told, _ = inherited
    lines = Path(told["path"], "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0] == {"step": 0, **told["initial"]}
    assert told["val_mae"] <= told["initial"]["val_mae"]  # the start is a candidate too


def test_importance_is_a_choice(example, inherited):
    _, student = inherited
    told, other = _distill(example, "student.importance=taylor")
    assert told["inherit"]["importance"] == "taylor"
    assert any(not torch.equal(student[name], other[name]) for name in student)


def test_a_student_from_a_file_starts_there(example, inherited, tmp_path):
    told, student = inherited
    path = f"{told['path']}/student.safetensors"
    given, again = _distill(
        example, "student.init=file", f"student.weights={path}", "distill.lr=1e-12"
    )
    assert given["inherit"] is None
    assert given["initial"]["val_mae"] == pytest.approx(told["val_mae"], rel=1e-5)
    assert all(torch.allclose(student[name], again[name], atol=1e-6) for name in student)
    with safe_open(path, framework="pt") as stream:
        assert json.loads(stream.metadata()["architecture"])["family"] == "shrink"


def test_a_student_of_ones_own_starts_at_random(tmp_path, spec):
    own = spec("student.family=model.py:student")
    assert own.student.init == "random"
