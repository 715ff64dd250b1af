"""GitHub's workflow commands: annotations, and standard streams guarded against other commands.

GitHub's runner obeys a line that begins with `::`, behind white space too, and `##[command]`
anywhere in one; Azure's agents obey `##vso[command]`. A class, an image or a folder may be named
so. A backslash in such a line makes it text; only `annotations` are to be commands.

Source of their form and escapes: GitHub's documentation of workflow commands, and
`packages/core/src/command.ts` of actions/toolkit.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from kdcompile.ci.outcome import UNDECIDED, Outcome
from kdcompile.core.escape import command_data, command_property

CI = ("GITHUB_ACTIONS", "CI", "TF_BUILD")  # set by the systems that read commands
LINE = re.compile(r"(^|[\r\n])(\s*)(?=:(?::|\Z))")
BRACKET = re.compile(r"(##\w*)\[")
BEGUN = re.compile(r"##?\w*\Z")


class Guarded:
    """A text stream in which no line is a command; else it is as the stream that it is before."""

    def __init__(self, stream: TextIO) -> None:
        """Guard what is written to `stream` from now on."""
        self.stream = stream
        self._is_new, self._begun = True, ""

    def __getattr__(self, name: str) -> Any:
        """All but writing is the stream's own; what lies below it would lead past the guard."""
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write it, with a backslash before what would begin a command."""
        made, encoding = self._plain(text), self.stream.encoding or "utf-8"
        self.stream.write(made.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """`write` of each."""
        for line in lines:
            self.write(line)

    def _plain(self, text: str) -> str:
        before, begun = len(self._begun), self._begun + text
        made = BRACKET.sub(r"\1\\[", begun)[before:]
        # of a line that an earlier write began, the beginning is not to be seen here
        made = LINE.sub(r"\1\2\\", made) if self._is_new else _later_lines(made)
        last = re.split(r"[\r\n]", text)[-1]
        self._is_new = not last.strip() and (self._is_new or last != text)
        found = BEGUN.search(begun)
        self._begun = found.group() if found else ""
        return made


def _later_lines(text: str) -> str:
    """With the lines guarded that begin within the text."""
    end = re.search(r"[\r\n]", text)
    if end is None:
        return text
    return text[: end.start()] + LINE.sub(r"\1\2\\", text[end.start() :])


def unguarded(stream: TextIO) -> TextIO:
    """The stream to which commands are written."""
    return stream.stream if isinstance(stream, Guarded) else stream


@contextmanager
def guarded(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Guard both streams of this process, where a CI system runs it or `--ci` is asked for.

    Args:
        words: of the command line.
        environment: which CI systems mark.
    """
    asked = any(word.partition("=")[0] in ("--ci", "--ci-folder") for word in words)
    if not asked and not any(environment.get(name) for name in CI):
        yield
        return
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Guarded(sys.stdout), Guarded(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


MOST = 10  # GitHub shows ten errors and ten warnings of a step, and drops the rest


def annotations(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each outcome that a reader must know of; nothing for what passed.

    Red ones are errors; optional gates that did not pass are warnings; pending ones are one notice.
    Where there are more than GitHub shows, the last line says how many.

    Args:
        outcomes: in the order of the report.
    """
    errors = [o for o in outcomes if o.red]
    warnings = [o for o in outcomes if not o.red and o.verdict in ("failed", *UNDECIDED)]
    pending = [o.name for o in outcomes if o.verdict == "pending" and not o.red]
    lines = [*_capped("error", errors), *_capped("warning", warnings)]
    if pending:
        lines.append(_line("notice", "kdcompile: pending on the board", ", ".join(pending)))
    return lines


def _capped(level: str, outcomes: Sequence[Outcome]) -> list[str]:
    shown = outcomes if len(outcomes) <= MOST else outcomes[: MOST - 1]
    lines = [_one(level, outcome) for outcome in shown]
    if len(shown) < len(outcomes):
        rest = ", ".join(o.name for o in outcomes[len(shown) :])
        more = f"kdcompile: {len(outcomes) - len(shown)} more"
        lines.append(_line(level, more, rest))
    return lines


def _one(level: str, outcome: Outcome) -> str:
    optional = "" if outcome.required else "optional, "
    title = f"kdcompile: {outcome.name}: {optional}{outcome.verdict}"
    facts = {"observed": outcome.observed, "threshold": outcome.threshold}
    said = [f"{name} {value}" for name, value in facts.items() if value]
    message = "\n".join(part for part in ("; ".join(said), outcome.reason) if part)
    file = outcome.details.get("file")
    return _line(level, title, message or outcome.verdict, str(file) if file else None)


def _line(level: str, title: str, message: str, file: str | None = None) -> str:
    place = f"file={command_property(file)}," if file else ""
    return f"::{level} {place}title={command_property(title)}::{command_data(message)}"
