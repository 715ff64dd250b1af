"""A worker in an interpreter of this machine."""

import errno
import os
import shutil
from pathlib import Path

from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.remote.client import MIB, Place, boot_command
from kdcompile.remote.errors import disk_full, file_absent, no_python
from kdcompile.remote.process import Gone


class LocalPlace(Place):
    """This interpreter or another one; files are copied within the machine.

    Args:
        label: how errors and reports name it.
        python: the interpreter.
        backend: of the worker.
        source: a zip file with the program that serves the backend; None for the agent.
    """

    def __init__(self, label: str, python: str, backend: str, source: bytes | None = None) -> None:
        program = shutil.which(os.path.expanduser(python))
        if program is None:
            raise no_python(python)
        self._python = python
        try:
            super().__init__(label, [program, *boot_command(backend, source)], source)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            raise no_python(python) from None

    def _not_started(self, gone: Gone) -> KDError:
        if gone.status < 0:
            return self._gone(gone)
        said = f": {gone.lines[-1]}" if gone.lines else ""
        return no_python(self._python, f"no Python: it ended with status {gone.status}{said}")

    def _copy_in(self, local: Path, there: str, sha256: str) -> None:
        self._check_room(local.stat().st_size)
        self._send(local, there)
        self._check_copy(Path(there), sha256, there)

    def _copy_out(self, there: str, local: Path, sha256: str, size: int) -> None:
        with replacing(local) as temporary:
            self._fetch(there, temporary)
            self._check_copy(temporary, sha256, there)

    def _send(self, local: Path, there: str) -> None:
        try:
            with replacing(Path(there)) as temporary:
                shutil.copyfile(local, temporary)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            free = shutil.disk_usage(self.work).free / MIB
            raise disk_full(self.label, self.work, free, local.stat().st_size / MIB) from None

    def _fetch(self, there: str, local: Path) -> None:
        try:
            shutil.copyfile(there, local)
        except FileNotFoundError:
            raise file_absent(there, self.label) from None
