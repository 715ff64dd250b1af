"""`kdcompile` as a user runs it, in this process, and what its refusals must look like."""

import hashlib
import sys

from kdcompile.cli import main


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
