"""`kdcompile` as a user runs it, in this process, and what its refusals must look like."""

import hashlib
import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from kdcompile.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str


def kdcompile(folder, *words, code=0, **environment):
    """Run `kdcompile` in a folder as its entry point does, in this process: imports cost once."""
    out, err, found = io.StringIO(), io.StringIO(), 0
    with (
        chdir(folder), redirect_stdout(out), redirect_stderr(err),
        patch.object(sys, "argv", ["kdcompile", *map(str, words)]),
        patch.dict(os.environ, environment),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as leave:
            found = leave.code or 0
    made = Finished(found, out.getvalue(), err.getvalue())
    assert made.code == code, made.stdout + made.stderr
    assert "Traceback" not in made.stderr
    return made


class CommandLine:
    """Called with words; gives the exit code and standard error; `out` is standard output."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words):
        self.monkeypatch.setattr(sys, "argv", ["kdcompile", *map(str, words)])
        self.capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code
        found = self.capsys.readouterr()
        self.out = found.out
        assert "Traceback" not in found.out + found.err
        return code, found.err


def refusal(found, code, message, fix, exit_code=1):
    """The error block of what a command gave, which must have these words."""
    status, text = found
    assert status == exit_code, text
    block = text[text.index("error[") :]
    first, *rest = block.splitlines()
    assert first.startswith(f"error[{code}]: "), block
    assert message in first
    assert fix in next(line for line in rest if line.startswith("  fix:")), block
    return block


def contents(folder):
    """SHA-256 of every file under a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
