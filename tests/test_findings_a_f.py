"""What an audit found at first use, and no other file's tests cover."""

import pytest
from bad_inputs import project
from click.testing import CliRunner

from kdcompile.cli import cli
from kdcompile.config.load import load_spec


def test_plan_tells_what_it_plans_before_it_loads_a_network(tmp_path, monkeypatch):
    def stop(_plan):
        raise RuntimeError("here the networks are loaded")

    project(tmp_path)
    monkeypatch.setattr("kdcompile.passes.show.describe", stop)
    found = CliRunner().invoke(cli, ["plan", str(tmp_path)])
    assert "here the networks" in str(found.exception)
    assert found.stderr.startswith(f"plan: {tmp_path}/kdcompile.toml for cpu")
    assert not found.stdout


def test_a_path_of_set_is_of_the_current_folder_and_code_of_the_specs(tmp_path, monkeypatch):
    """Both are said in the help of --set."""
    project(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    spec = load_spec(tmp_path / "kdcompile.toml", ["teacher.weights=a.pt", "teacher.model=m.py:f"])
    assert spec.teacher.weights == elsewhere / "a.pt"
    assert (spec.teacher.model, spec.folder) == ("m.py:f", tmp_path)
    told = " ".join(CliRunner().invoke(cli, ["plan", "--help"]).output.split())
    assert "A path is relative to the current folder, code (FILE.py:NAME) to the spec's." in told


@pytest.mark.parametrize("given", ["resolution", "restoration"])
def test_a_task_is_not_mistaken_for_another_that_reads_alike(given, tmp_path):
    project(tmp_path)
    found = CliRunner().invoke(cli, ["plan", str(tmp_path), "--set", f"task.kind={given}"])
    assert found.exit_code == 1
    assert "did you mean" not in str(found.exception)
