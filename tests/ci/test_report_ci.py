import io
import json
import logging
import os
from xml.etree import ElementTree

import pytest

from kdcompile.ci.outcome import Outcome
from kdcompile.ci.report import FILES, SUMMARY_BYTES, in_ci, report_ci
from kdcompile.core.errors import KDError

FAILED = Outcome("size", "size", "failed", True, "3 MB", "2 MB", "too big")


def test_all_files(tmp_path):
    files = report_ci([FAILED], tmp_path / "a" / "b", "crowd", environment={})
    assert [file.name for file in files] == list(FILES)
    assert ElementTree.parse(files[0]).getroot().get("failures") == "1"
    assert files[1].read_text().startswith("### ❌ crowd")
    assert files[2].read_text().endswith("# EOF\n")
    record = json.loads(files[3].read_text())
    assert (record["exit_code"], record["verdict"], record["format"]) == (3, "failed: size", 1)
    assert record["outcomes"][0]["reason"] == "too big"
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == sorted(FILES)


def test_a_command_that_judges_nothing_says_so_everywhere(tmp_path):
    shown = Outcome("net", "latency", "skipped", required=False, observed="p50 1 ms")
    verdict = ("measured only", 0)
    files = report_ci([shown], tmp_path, "bench", verdict=verdict, environment={})
    found = {p.get("name"): p.get("value") for p in ElementTree.parse(files[0]).iter("property")}
    assert found == {"verdict": "measured only", "exit_code": "0"}
    assert "**measured only** (exit 0; 1 skipped)" in files[1].read_text()
    record = json.loads(files[3].read_text())
    assert (record["verdict"], record["exit_code"]) == verdict


def test_an_exit_code_without_a_red_gate_is_a_red_test_of_its_own(tmp_path):
    """Every gate waits for the board: the exit code is 5, and no gate says so."""
    waits = Outcome("speedup", "latency", "pending")
    junit_xml, *_, record = report_ci([waits], tmp_path, "t", environment={})
    found = {c.get("name"): c[0].tag for c in ElementTree.parse(junit_xml).iter("testcase")}
    assert found == {"speedup": "skipped", "verdict": "error"}
    assert json.loads(record.read_text())["exit_code"] == 5
    report_ci([waits, Outcome("size", "size", "passed")], tmp_path, "t", environment={})
    names = [c.get("name") for c in ElementTree.parse(junit_xml).iter("testcase")]
    assert names == ["speedup", "size"]


def test_the_summary_is_appended(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n")
    report_ci([FAILED], tmp_path / "out", "crowd", environment={"GITHUB_STEP_SUMMARY": str(page)})
    assert page.read_text().startswith("before\n### ❌ crowd")


def test_a_summary_over_the_limit_of_github_is_left_out_and_said(tmp_path, caplog):
    page = tmp_path / "page.md"
    page.write_text("x" * SUMMARY_BYTES)
    with caplog.at_level(logging.WARNING, "kdcompile"):
        report_ci([FAILED], tmp_path, "crowd", environment={"GITHUB_STEP_SUMMARY": str(page)})
    assert page.stat().st_size == SUMMARY_BYTES
    assert "1 MiB" in caplog.text


def test_a_summary_that_cannot_be_written_loses_no_verdict(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "kdcompile"):
        files = report_ci(
            [FAILED], tmp_path / "out", "t", environment={"GITHUB_STEP_SUMMARY": str(tmp_path)}
        )
    assert all(file.is_file() for file in files)
    assert "not appended" in caplog.text


@pytest.mark.parametrize(("value", "count"), [("true", 1), ("false", 0), (None, 0)])
def test_annotations_only_where_github_runs(tmp_path, value, count):
    stream = io.StringIO()
    environment = {} if value is None else {"GITHUB_ACTIONS": value}
    report_ci([FAILED], tmp_path, "t", stream=stream, environment=environment)
    assert stream.getvalue().count("::error ") == count


def test_annotations_go_to_standard_output(tmp_path, capsys):
    report_ci([FAILED], tmp_path, "t", environment={"GITHUB_ACTIONS": "true"})
    assert capsys.readouterr().out.startswith("::error title=kdcompile%3A size%3A failed::")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    for call in (lambda: report_ci([FAILED], tmp_path / "out", "t"), lambda: _enter(tmp_path)):
        with pytest.raises(KDError) as error:
            call()
        assert error.value.code == "ci-folder"
        assert "--ci-folder" in error.value.fix


def test_a_folder_without_write_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(KDError) as error:
        _enter(tmp_path)
    assert error.value.code == "ci-folder"
    assert "Permission denied" in error.value.message


def _enter(folder):
    with in_ci(folder / "out", "build", "crowd"):
        pytest.fail("nothing may be measured for reports that cannot be written")


@pytest.mark.parametrize("error", [KDError("spec-missing", "no spec", "here", "write"), OSError()])
def test_an_error_is_reported_and_raised(tmp_path, error):
    with pytest.raises(type(error)), in_ci(tmp_path, "bench", "crowd"):
        raise error
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    case = root.find(".//testcase")
    assert (case.get("classname"), case.get("name"), case[0].tag) == (
        "kdcompile.bench", "crowd", "error",
    )  # fmt: skip
    assert root.get("name") == "kdcompile bench"
    assert json.loads((tmp_path / "outcomes.json").read_text())["exit_code"] == 1


def test_reports_of_an_earlier_run_go_before_the_work(tmp_path):
    report_ci([Outcome("size", "size", "passed")], tmp_path, "t", environment={})
    (tmp_path / "mine.txt").write_text("kept")
    with in_ci(tmp_path, "build", "crowd"):
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_was_stopped_leaves_no_report(tmp_path):
    report_ci([Outcome("size", "size", "passed")], tmp_path, "t", environment={})
    with pytest.raises(KeyboardInterrupt), in_ci(tmp_path, "build", "crowd"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_without_ci_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDError), in_ci(None, "build", "crowd"):
        raise KDError("x", "y")
    assert list(tmp_path.iterdir()) == []
