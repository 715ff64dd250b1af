import re

import pytest

from kdcompile.ci.outcome import Outcome
from kdcompile.ci.stream import MOST, annotations

COMMAND = re.compile(r"::(error|warning|notice) ([^:]*)::(.*)")


def read(line):
    """The level, properties and message, as GitHub's runner reads them."""

    def back(text):
        for code, char in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            text = text.replace(code, char)
        return text

    level, properties, message = COMMAND.fullmatch(line).groups()
    pairs = (part.split("=", 1) for part in properties.split(","))
    return level, {key: back(value) for key, value in pairs}, back(message)


@pytest.mark.parametrize(
    ("verdict", "required", "level"),
    [
        ("failed", True, "error"), ("inconclusive", True, "error"), ("skipped", True, "error"),
        ("error", True, "error"), ("failed", False, "warning"), ("inconclusive", False, "warning"),
        ("skipped", False, "warning"), ("error", False, "warning"), ("pending", True, "notice"),
        ("pending", False, "notice"),
    ],
)  # fmt: skip
def test_levels(verdict, required, level):
    lines = annotations([Outcome("size", "size", verdict, required, "3 MB", "2 MB", "too big")])
    assert [read(line)[0] for line in lines] == [level]


@pytest.mark.parametrize("required", [True, False])
def test_what_passed_is_not_told(required):
    assert annotations([Outcome("size", "size", "passed", required)]) == []


def test_any_text_stays_one_line_and_comes_back():
    nasty = "a::b, 50%\r\n::set-output name=x::y %0A"
    outcome = Outcome(
        nasty, "size", "failed", True, "3 MB", "2 MB", nasty, 0, {"file": "a,b:c.toml"}
    )
    lines = annotations([outcome])
    assert len(lines) == 1
    assert "\n" not in lines[0]
    _, properties, message = read(lines[0])
    assert properties == {"file": "a,b:c.toml", "title": f"kdcompile: {nasty}: failed"}
    assert message == f"observed 3 MB; threshold 2 MB\n{nasty}"


def test_no_more_than_github_shows_and_the_last_counts_the_rest():
    lines = annotations([Outcome(f"g{i}", "size", "failed") for i in range(MOST + 3)])
    assert len(lines) == MOST
    assert read(lines[-1])[1]["title"] == "kdcompile: 4 more"
    assert read(lines[-1])[2] == "g9, g10, g11, g12"


def test_exactly_as_many_as_github_shows():
    lines = annotations([Outcome(f"g{i}", "size", "failed") for i in range(MOST)])
    assert read(lines[-1])[1]["title"] == "kdcompile: g9: failed"


def test_a_lone_surrogate_can_be_written():
    assert annotations([Outcome("\ud800", "size", "failed")])[0].encode()
