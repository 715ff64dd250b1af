"""`bench --ci` and `compare --ci`: no report of an earlier run outlives an error."""

import json
from xml.etree import ElementTree

import pytest
from bench_line import BenchLine
from command_line import contents, refusal


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    """The command line, with a baseline of `net.onnx` and the reports of a run that passed."""
    made = BenchLine(monkeypatch, capsys, tmp_path)
    made.network("net", 1.0)
    assert made("bench", "net.onnx", "--save", "b.json")[0] == 0
    assert made("bench", "net.onnx", "--baseline", "b.json", "--ci")[0] == 0
    assert case(made)[2] is None
    return made


def case(line):
    """Suite, class and result of the one test, whose name is last."""
    root = ElementTree.parse(line.folder / "kdcompile-ci" / "junit.xml").getroot()
    (found,) = root.iter("testcase")
    marks = [c.tag for c in found if c.tag in ("failure", "error", "skipped")]
    return root.get("name"), found.get("classname"), next(iter(marks), None), found.get("name")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("net.onnx", "--until-decided"), "net.onnx"),
        (("net.onnx", "--reference", "net.onnx"), "net.onnx"),
        (("net.onnx", "--runs", "5"), "net.onnx"),
        (("net.onnx", "--allow", "cpu"), "net.onnx"),
        (("net.onnx", "--baseline", "b.json", "--limit", "30"), "net.onnx"),
        (("net.onnx", "--backend", "tensorflow"), "bench"),
        (("net.onnx", "--marign", "3%"), "bench"),
        ((), "bench"),
    ],
)
def test_a_wrong_command_line_is_reported_in_place_of_the_old_verdict(line, words, name):
    assert line("bench", *words, "--ci")[0] == 2
    assert case(line) == ("kdcompile bench", "kdcompile.bench", "error", name)
    record = json.loads((line.folder / "kdcompile-ci" / "outcomes.json").read_text())
    assert record["exit_code"] == 2


def test_an_error_names_its_command(line):
    refusal(line("bench", "none.onnx", "--ci"), "artifact-missing", "no such file", "name an ONNX")
    assert case(line) == ("kdcompile bench", "kdcompile.bench", "error", "none.onnx")
    assert line("compare", "none.onnx", "net.onnx", "--ci")[0] == 1
    assert case(line) == ("kdcompile compare", "kdcompile.compare", "error", "net.onnx")
    assert line("compare", "net.onnx", "--ci")[0] == 2
    assert case(line) == ("kdcompile compare", "kdcompile.compare", "error", "compare")


def test_measuring_without_a_baseline_warns_that_nothing_was_judged(line, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert line("bench", "net.onnx", "--ci")[0] == 0
    assert case(line)[2] == "skipped"
    assert "::warning title=kdcompile%3A net.onnx%3A optional%2C skipped::" in line.out


@pytest.mark.parametrize("file", ["net.onnx/b.json", "net.onnx/x/b.json", f"{300 * 'x'}.json"])
def test_a_baseline_that_cannot_be_written_is_told_before_the_measuring(line, file):
    before, places = contents(line.folder), len(line.scene.places)
    found = line("bench", "net.onnx", "--save", file)
    refusal(found, "baseline-folder", "cannot be written", "a folder that you may write to")
    assert len(line.scene.places) == places, "nothing was measured"
    assert contents(line.folder) == before
    assert line("bench", "net.onnx", "--save", "new/folder/b.json")[0] == 0  # the fix
