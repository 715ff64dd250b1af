"""Why a build on the board cannot go on."""

from __future__ import annotations


class Stop(Exception):  # noqa: N818
    """The build cannot go on; printed as an error block."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        """Keep the parts of the error block."""
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix
