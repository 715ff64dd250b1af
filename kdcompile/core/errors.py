"""Every failure a user can meet, and the exit code that each ends with.

    KDError          1  the user can fix it
    ├─ ToolMissingError   4  a tool that the command needs is absent
    └─ InternalError     70  nobody foresaw it: a fault of kdcompile

Exit 2 is click's (usage); 3 (a gate failed) and 5 (inconclusive) are verdicts, not errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

EXIT_OK, EXIT_FIXABLE, EXIT_USAGE, EXIT_GATE, EXIT_MISSING, EXIT_INCONCLUSIVE = range(6)
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h


class KDError(Exception):
    """A failure with its remedy.

    Args:
        code: short stable name, such as `spec-missing`.
        message: what is wrong, in one sentence.
        where: file, key or object at fault.
        fix: what to do next; a command where there is one.
    """

    exit_code = EXIT_FIXABLE

    def __init__(self, code: str, message: str, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.where, self.fix = code, message, where, fix

    def __reduce__(self) -> tuple[Any, ...]:
        """By its four parts, so that it crosses processes."""
        return type(self), (self.code, self.message, self.where, self.fix)

    def __str__(self) -> str:
        """The error block as the command line prints it."""
        lines = [f"error[{self.code}]: {plain(self.message)}"]
        if self.where:
            lines.append(f"  where: {plain(self.where)}")
        if self.fix:
            lines.append(f"  fix:   {plain(self.fix)}")
        return "\n".join(lines)


class ToolMissingError(KDError):
    """A library or program that this command needs is not installed."""

    exit_code = EXIT_MISSING


class InternalError(KDError):
    """An exception that nobody foresaw, kept in a file to report."""

    exit_code = EXIT_INTERNAL


def plain(text: object) -> str:
    """Text that is one line and tells neither a terminal nor a CI system: it may be anybody's."""
    line = "".join(
        c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in str(text)
    )
    line = "\\" * line.lstrip().startswith("::") + line
    return re.sub(r"(##\w*)\[", r"\1\\[", line)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A ` (did you mean X?)` suffix, or nothing when no known name is close.

    `cutoff` is of difflib's ratio: raise it where names that look alike mean other things.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {found[0]!r}?)" if found else ""
