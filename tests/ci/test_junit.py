"""The document has the structure of junit-10.xsd (Jenkins' xUnit plug-in), and counts right."""

import re
from datetime import datetime
from xml.etree import ElementTree

import pytest

from kdcompile.ci.junit import junit
from kdcompile.ci.outcome import Outcome

TIME = re.compile(r"\d+\.\d{3}")
# element: (attributes that it must have, that it may have, names of its children)
STRUCTURE = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    **dict.fromkeys(("failure", "error", "skipped"), (set(), {"type", "message"}, set())),
    "system-out": (set(), set(), set()),
}
EVERY = [
    Outcome(f"{verdict} {required}", "size", verdict, required, "3 MB", "2 MB", "too big", 1.25)
    for verdict in ("passed", "failed", "inconclusive", "skipped", "pending", "error")
    for required in (True, False)
]
RESULT = {
    "passed True": None, "failed True": "failure", "inconclusive True": "error",
    "skipped True": "error", "error True": "error", "pending True": "skipped",
    "passed False": None,
    **{f"{v} False": "skipped" for v in ("failed", "inconclusive", "skipped", "pending", "error")},
}  # fmt: skip
NASTY = "a<b> & \"c\" 'd' ]]> \x00\x1b[31m \ud800 \ufffe é 漢 \U0001f600"


def parsed(outcomes, title="a build"):
    return ElementTree.fromstring(junit(outcomes, title).encode())


def results(root):
    """The name of each test case's result element; None where it passed."""
    return {
        case.get("name"): next((c.tag for c in case if c.tag != "system-out"), None)
        for case in root.iter("testcase")
    }


def test_the_structure_is_that_of_the_schema():
    for element in parsed(EVERY).iter():
        must, may, children = STRUCTURE[element.tag]
        assert must <= set(element.keys()) <= must | may
        assert {child.tag for child in element} <= children
        if element.get("time") is not None:
            assert TIME.fullmatch(element.get("time"))


def test_what_is_red_and_how():
    assert results(parsed(EVERY)) == RESULT


def test_the_counts_are_those_of_the_cases():
    root = parsed(EVERY)
    suite = root.find("testsuite")
    found = list(RESULT.values())
    for element in (root, suite):
        assert element.get("tests") == str(len(EVERY))
        assert element.get("failures") == str(found.count("failure"))
        assert element.get("errors") == str(found.count("error"))
        assert element.get("time") == "15.000"
    assert suite.get("skipped") == str(found.count("skipped"))


def test_verdict_and_exit_code_are_properties():
    found = {p.get("name"): p.get("value") for p in parsed([EVERY[2]]).iter("property")}
    assert found == {"verdict": "failed: failed True", "exit_code": "3"}


def test_text_and_message_both_tell_it_all():
    case = parsed([Outcome("size", "size", "failed", True, "3 MB", "at most 2 MB", "too big")])
    failure = case.find(".//failure")
    assert failure.get("message") == "failed: 3 MB"
    assert failure.text.splitlines() == [
        "observed: 3 MB", "threshold: at most 2 MB", "reason: too big",
    ]  # fmt: skip
    assert case.find(".//testcase").get("classname") == "kdcompile.size"


def test_an_optional_gate_says_so():
    root = parsed([Outcome("size", "size", "failed", required=False, observed="3 MB")])
    assert root.find(".//skipped").get("message") == "optional, failed: 3 MB"


@pytest.mark.parametrize("verdict", ["passed", "failed", "error", "pending"])
def test_any_text_gives_whole_xml(verdict):
    root = parsed([Outcome(NASTY, NASTY, verdict, True, NASTY, NASTY, NASTY)], NASTY)
    case = root.find(".//testcase")
    expected = "a<b> & \"c\" 'd' ]]> \ufffd\ufffd[31m \ufffd \ufffd é 漢 \U0001f600"
    assert case.get("name") == root.get("name") == expected
    assert expected in case[0].text


def test_the_time_is_utc_without_a_zone():
    text = junit([], "empty", datetime(2026, 1, 2, 3, 4, 5, 678))
    assert 'timestamp="2026-01-02T03:04:05"' in text
