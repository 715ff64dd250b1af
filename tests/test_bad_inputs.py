"""Everything that a user can get wrong: one block with where and a fix, and the fix works."""

import subprocess
import sys

import pytest
from bad_inputs import BadInput, all_cases, unfinished
from command_line import CommandLine, contents

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_refused_and_its_fix_works(case: BadInput, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = CommandLine(monkeypatch, capsys)
    case.make(tmp_path)
    before = contents(tmp_path)
    code, text = command(*case.command)
    assert code == case.exit, text
    block = _block(text, case)
    assert not [words for words in case.says if words not in block], block
    assert command.out == ""
    assert unfinished(before, contents(tmp_path)) == []

    words = case.fixed(tmp_path) or case.command
    code, text = command(*words)
    assert code == case.after, text + command.out
    assert f"error[{case.code}]" not in text
    assert (f"error[{case.then}]" in text) == (case.then is not None), text


def test_the_command_line_itself_says_the_same(tmp_path):
    case = next(case for case in CASES if case.name == "split-of-a-missing-image")
    case.make(tmp_path)
    before = contents(tmp_path)
    command = [sys.executable, "-P", "-m", "kdcompile", *case.command]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == case.exit
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    _block(found.stderr, case)
    assert unfinished(before, contents(tmp_path)) == []


def _block(text: str, case: BadInput) -> str:
    """The one error block of standard error, with where and a fix; for usage all of it."""
    if case.exit == 2:
        assert "Usage: " in text
        assert "error[" not in text
        return text
    assert text.count("error[") == 1, text
    block = text[text.index("error[") :]
    first, *rest = block.splitlines()
    assert first.startswith(f"error[{case.code}]: "), block
    assert [line[:9] for line in rest] == ["  where: ", "  fix:   "], block
    return block


def test_there_are_enough_and_each_is_one_of_its_kind():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 60
