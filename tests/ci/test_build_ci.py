"""`build --ci`: the reports say what the exit code says; a build that breaks is reported too."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kdcompile import api
from kdcompile.cli import main
from kdcompile.cli.ci import FOLDER, asked_folder
from kdcompile.core.report import GateResult, Report, overall


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`kdcompile build` in an empty folder; gives the exit code and both streams."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def call(*words, gates=None):
        if gates is not None:
            gates = tuple(GateResult(*gate, "t", "o", "why") for gate in gates)
            verdict, code = overall(gates)
            report = Report("crowd", "jetson", verdict, code, gates, (), {})

            def build(*_, require_device, **__):
                code = overall(gates, require_device=require_device)[1]
                return api.Built(**vars(report) | {"exit_code": code}, bundle=Path("dist/x"))

            monkeypatch.setattr(api, "build", build)
        monkeypatch.setattr(sys, "argv", ["kdcompile", "build", *words])
        with pytest.raises(SystemExit) as leave:
            main()
        return leave.value.code, *capsys.readouterr()

    return call


def cases(folder="kdcompile-ci"):
    root = ElementTree.parse(Path(folder) / "junit.xml")
    return {c.get("name"): c[0].tag for c in root.iter("testcase")}


PASSED = ("accuracy", "passed", "host", True)
FAILED = ("size_mb", "failed", "host", True)
PENDING = ("speedup", "pending", "device", True)


def test_a_failed_gate(run):
    assert run("--ci", gates=[PASSED, FAILED])[0] == 3
    assert cases() == {"accuracy": "system-out", "size_mb": "failure"}
    record = json.loads(Path("kdcompile-ci/outcomes.json").read_text())
    assert record["exit_code"] == 3
    assert record["title"] == f"kdcompile build: {Path.cwd().name}"


@pytest.mark.parametrize(
    ("words", "code", "tag"), [((), 0, "skipped"), (("--require", "device"), 5, "error")]
)
def test_pending_gates(run, words, code, tag):
    assert run("--ci", *words, gates=[PASSED, PENDING])[0] == code
    assert cases()["speedup"] == tag


def test_a_folder_alone_asks_for_reports(run):
    run("--ci-folder", "out/reports", gates=[PASSED])
    assert cases("out/reports") == {"accuracy": "system-out"}
    assert not Path("kdcompile-ci").exists()


def test_no_reports_without_being_asked(run):
    run(gates=[PASSED])
    assert list(Path().iterdir()) == []


def test_annotations_stay_out_of_the_json(run, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, out, err = run("--ci", "--json", gates=[FAILED])
    assert json.loads(out)["exit_code"] == code == 3
    assert err.startswith("::error title=")
    assert run("--ci", gates=[FAILED])[1].splitlines()[-1].startswith("::error title=")


def test_a_build_that_breaks_is_reported(run):
    Path("kdcompile-ci").mkdir()
    Path("kdcompile-ci/junit.xml").write_text("<of an earlier run/>")
    code, _, err = run("--ci")
    assert code == 1
    assert "error[spec-missing]" in err
    assert cases() == {Path.cwd().name: "error"}
    text = ElementTree.parse("kdcompile-ci/junit.xml").find(".//error").text
    assert "fix:   kdcompile init --example digits" in text


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (("crowd", "--target", "jetson"), "kdcompile build: crowd for jetson"),
        (("crowd/mine.toml",), "kdcompile build: crowd"),
        (("crowd/../other/",), "kdcompile build: other"),
    ],
)
def test_the_suite_has_one_name_whether_the_build_breaks_or_not(run, words, title):
    for gates, code in ((None, 1), ([PASSED], 0), ([FAILED], 3)):
        assert run(*words, "--ci", gates=gates)[0] == code
        assert ElementTree.parse("kdcompile-ci/junit.xml").getroot().get("name") == title


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("--targt", "jetson", "--ci"), "kdcompile-ci"),
        (("--ci", "a", "b"), "kdcompile-ci"),
        (("--require", "bord", "--ci-folder", "out"), "out"),
        (("--ci-folder=out", "--set"), "out"),
    ],
)
def test_a_wrong_command_line_leaves_no_verdict_of_the_run_before(run, words, folder):
    run("--ci-folder", folder, gates=[PASSED])
    code, _, err = run(*words)
    assert code == 2
    assert "Error: " in err
    assert cases(folder) == {"build": "error"}
    record = json.loads((Path(folder) / "outcomes.json").read_text())
    assert (record["exit_code"], record["outcomes"][0]["kind"]) == (2, "build")
    assert record["outcomes"][0]["reason"] in err


@pytest.mark.parametrize("words", [("--targt", "x"), ("--targt", "--", "--ci")])
def test_reports_stay_where_none_are_asked_for(run, words):
    run("--ci", gates=[PASSED])
    assert run(*words)[0] == 2
    assert cases() == {"accuracy": "system-out"}


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], None), (["--ci"], FOLDER), (["--ci-folder", "a"], "a"), (["--ci-folder=a"], "a"),
        (["--ci", "--ci-folder", "a"], "a"), (["--ci", "--ci-folder"], FOLDER),
        (["--", "--ci"], None), (["--json", "x"], None),
    ],
)  # fmt: skip
def test_the_folder_of_a_command_line_that_cannot_be_read(words, folder):
    assert asked_folder(words) == (None if folder is None else Path(folder))
