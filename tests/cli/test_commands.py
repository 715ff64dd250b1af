"""The command line: errors with codes and fixes, JSON, and the light commands."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from kdcompile.cli import cli, main
from kdcompile.config.load import find_spec, load_spec
from kdcompile.core.errors import KDError

SPEC = """
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "data"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    return tmp_path


def _out(*args):
    result = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_spec_missing_in_an_empty_folder(tmp_path):
    command = [sys.executable, "-P", "-m", "kdcompile", "build", "--target", "jetson"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.splitlines()[0] == "error[spec-missing]: there is no kdcompile.toml here"
    assert (
        "fix:   kdcompile init --example digits . && kdcompile build --target jetson"
        in found.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sets", "code", "fragment"),
    [
        (["distil.steps=5"], "spec-invalid", "'distill'"),
        (["distill.stepz=5"], "spec-invalid", "'steps'"),
        (["distill.steps=many"], "spec-invalid", "distill.steps"),
        (["student.budget={width=0.5, macs=3}"], "spec-invalid", "exactly one"),
        (["student.budget.width=0.5", "distill.steps"], "set-syntax", "distill.steps"),
        (["seed.x=1", "seed.x.y=2"], "set-syntax", "not a section"),
        (["gates.accuracy.margin=0.15"], "spec-invalid", "margin"),
        (["export.shape=[1, 3, 0, 5]"], "spec-invalid", "export.shape"),
        (["student.init=file"], "spec-invalid", "weights"),
        (["data.format=csv"], "spec-invalid", "points-jsonl"),
        (["export.shape=[1, 1, 64, 64]"], "spec-invalid", "data.mean has 3 numbers"),
        (["export.shape=[2, 3, 64, 64]"], "spec-invalid", "2 x 3"),
    ],
)
def test_a_bad_spec_names_the_field(folder, sets, code, fragment):
    with pytest.raises(KDError) as error:
        load_spec(find_spec(None), sets)
    assert error.value.code == code
    assert fragment in error.value.message
    assert error.value.fix


def test_broken_toml(folder):
    (folder / "kdcompile.toml").write_text("a = [")
    with pytest.raises(KDError) as error:
        load_spec(find_spec(None))
    assert error.value.code == "spec-syntax"


def test_paths_resolve_against_the_spec_or_the_current_folder(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    spec = load_spec(find_spec(".."), ["data.root=photos"])
    assert spec.teacher.weights == folder / "w.safetensors"
    assert spec.data.root == folder / "elsewhere" / "photos"
    assert spec.name == folder.name


def test_a_stage_sees_only_its_sections(folder):
    view = load_spec(find_spec(None)).only(["data"])
    assert view.data.format == "points-jsonl"
    with pytest.raises(AttributeError):
        _ = view.teacher


def test_set_reads_toml_and_falls_back_to_a_string(folder):
    spec = load_spec(
        find_spec(None), ["distill.recipe=none", "data.mean=[0.1, 0.2, 0.3]", "seed=7"]
    )
    assert (spec.distill.recipe, spec.data.mean, spec.seed) == ("none", [0.1, 0.2, 0.3], 7)


def test_the_designs_example_spec_is_understood(tmp_path):
    text = """
target = "jetson"
seed = 0
[task]
kind = "counting"
[teacher]
model = "model.py:build"
weights = "weights.safetensors"
[data]
format = "points-jsonl"
root = "../data/shanghaitech_a"
train = "train_minus_val.txt"
val = "val.txt"
test = "test.txt"
[student]
family = "shrink"
budget = { speedup = 6.5 }
init = "random"
[distill]
recipe = "skt"
steps = 6000
taps = "auto"
[export]
shape = [1, 3, 576, 768]
[quantize]
precision = "auto"
calibrator = "entropy"
images = 128
qad = false
[gates]
accuracy = { metric = "mae", max_increase = "5%", margin = "15%" }
speedup = { min = 6.5, evidence = "host" }
size_mb = { max = 8 }
"""
    (tmp_path / "kdcompile.toml").write_text(text)
    spec = load_spec(tmp_path / "kdcompile.toml")
    assert spec.student.budget.speedup == 6.5
    assert spec.gates.size_mb.max == 8


def test_errors_are_a_block_and_not_a_traceback(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdcompile", "plan", "--target", "jetsn"])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error[target-unknown]")
    assert "jetson" in error
    assert "fix:" in error
    assert "Traceback" not in error


def test_usage_is_exit_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdcompile", "plan", "--no-such-option"])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 2
    assert "no-such-option" in capsys.readouterr().err


def test_targets_and_recipes():
    assert "jetson-orin-nano-8gb" in _out("targets")
    assert json.loads(_out("targets", "--json"))["aliases"]["jetson"] == "jetson-orin-nano-8gb"
    shown = _out("targets", "show", "jetson")
    assert "MAXN_SUPER" in shown
    assert "[datasheet" in shown
    facts = json.loads(_out("targets", "show", "jetson", "--json"))
    assert (facts["tensorrt"], facts["python"], facts["jetpack"]) == ("10.3", "3.10", "6.2")
    assert "skt" in _out("recipes")
    assert json.loads(_out("recipes", "show", "skt", "--json"))["needs"] == ["teacher", "taps"]
    assert "counting: the terms of the recipe alone" in _out("recipes", "show", "ghnd")
    assert "Chen" in _out("recipes", "show", "skt")


def test_schema_describes_the_sections():
    schema = json.loads(_out("schema"))
    assert {"teacher", "data", "gates"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_every_command_has_help_and_json():
    for name, command in cli.commands.items():
        assert "Usage" in _out(name, "--help")
        own = any("--json" in option.opts for option in command.params)
        parts = () if own else getattr(command, "commands", {}).values()  # of a group, each
        assert own or parts, name
        assert all(any("--json" in o.opts for o in part.params) for part in parts), name
