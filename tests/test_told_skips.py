"""What a missing sshd leaves out is the last line of a run."""

import inspect

import pytest
import told_skips

pytest_plugins = ["pytester"]
TESTS = """
import pytest

@pytest.mark.parametrize("reason", {})
def test_of_a_board(reason):
    pytest.skip(reason)
"""
NO_SSHD = "no /usr/sbin/sshd: install openssh-server"


@pytest.mark.parametrize(
    ("reasons", "words", "last"),
    [
        ([NO_SSHD, NO_SSHD, "no GPU"], "-p xdist -n 1", "2 tests of --via ssh:// skipped: *"),
        ([NO_SSHD], "", "1 test of --via ssh:// skipped: install openssh-server (apt-get *)"),
        (["no GPU"], "", "*1 skipped*"),
    ],
)
def test_the_last_line_says_what_is_left_out(pytester, monkeypatch, reasons, words, last):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # which would take longer than it
    pytester.makeconftest(inspect.getsource(told_skips))
    pytester.makepyfile(TESTS.format(reasons))
    found = pytester.runpytest_subprocess(*words.split())
    lines = [line for line in found.outlines if line]
    pytest.LineMatcher(lines[-1:]).fnmatch_lines([last])
