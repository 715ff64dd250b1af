"""Standard output and error where a CI system reads commands from them.

GitHub's runner obeys a line that begins with `::`, behind white space too, and `##[command]`
anywhere in one; Azure's agents obey `##vso[command]`. A class, an image or a folder may be named
so. A backslash in such a line makes it text; only `annotations` are to be commands.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

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
