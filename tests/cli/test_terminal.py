"""Text for people on a terminal that is narrower than its lines."""

import os

import pytest

from kdcompile.cli import terminal
from kdcompile.cli.terminal import broken, echo_text

PROSE = "accuracy   400 test photos cannot decide it: of a student never wrong, 900 would do"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_words_stay_whole_and_begin_below_the_second_column(width):
    first, *more = broken(PROSE, width).split("\n")
    assert more
    assert all(len(line) <= width for line in (first, *more))
    assert " ".join([first, *(line.strip() for line in more)]) == PROSE
    assert all(line[:11] == " " * 11 and line[11] != " " for line in more)


def test_a_line_that_fits_and_a_fix_are_left():
    assert broken(PROSE[:80], 80) == PROSE[:80]
    fix = f"{'':<10} fix:   kdcompile build --set {'x' * 80}"
    assert broken(fix, 80) == fix
    assert broken("x" * 90, 80) == "x" * 90


@pytest.mark.parametrize("is_terminal", [True, False])
def test_text_is_broken_on_a_terminal_only(monkeypatch, capsys, is_terminal):
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: is_terminal)
    size = os.terminal_size((50, 24))
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda *given, **more: size)
    echo_text(f"short\n{PROSE}")
    lines = capsys.readouterr().out.splitlines()
    assert (max(map(len, lines)) <= 50) == is_terminal
    assert lines[0] == "short"
