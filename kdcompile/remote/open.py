"""Open the device that builds and times a network, by its `--via`, and compare it with a target.

    None                                    this process's interpreter
    python:/path/to/python                  another interpreter of this machine
    ssh://[user@]host[:port][?python=PATH]  a board, with the user's own OpenSSH

Over SSH the user's configuration, keys, agent and jump hosts hold; `$KDCOMPILE_SSH_CONFIG` names a
configuration file to use in their place (OpenSSH's `-F`). Nothing asks for a password, and an
unknown host key is refused.
"""

import errno
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcompile.core.backends import find, is_served, program
from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.core.report import Evidence
from kdcompile.remote import bounded
from kdcompile.remote.client import MIB, Place, boot_command
from kdcompile.remote.errors import disk_full, file_absent, invalid, no_python
from kdcompile.remote.process import Gone
from kdcompile.remote.ssh import SshPlace, masked, parse_ssh
from kdcompile.targets import Target

__all__ = ["Place", "open_place"]


def open_place(via: str | None, backend: str, source: bytes | None = None) -> Place:
    """Start a worker somewhere and greet it; used as a context manager.

    Args:
        via: see the module's first lines.
        backend: a name of `core.backends`. One that this interpreter serves runs here only.
        source: a zip file with a program that serves it; None for the backend's own.

    Raises:
        KDError: `via-invalid`, `via-python`, `backend-local`; over SSH `host-key`, `ssh-refused`,
            `ssh-unreachable`, `ssh-failed`; `worker-died`.
        ToolMissingError: OpenSSH here, or Python, numpy or the backend there, is absent.
    """
    served = source is None and is_served(backend)
    if via is None:
        source = program(backend) if served else source
        return LocalPlace("this machine", sys.executable, backend, source)
    if served:
        raise KDError(
            "backend-local",
            f"{backend} runs in this interpreter only, and --via names another one",
            where=f"--via {masked(via)}",
            fix="leave --via out, and run kdcompile on that machine",
        )
    kind, colon, rest = via.partition(":")
    if kind == "python" and rest:
        return LocalPlace(via, rest, backend, source)
    if kind == "ssh" and colon:
        return SshPlace(parse_ssh(via), backend, source)
    raise invalid(masked(via), "a place is python:PATH or ssh://[user@]host[:port]")


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
            self._fetch(there, temporary, size)
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

    def _fetch(self, there: str, local: Path, most: int) -> None:
        try:
            bounded.copy(there, local, most)
        except FileNotFoundError:
            raise file_absent(there, self.label) from None


# of hello: what a measurement there depends on, and stays put between two runs
FACTS = ("backend", "backend_version", "platform", "module", "power_mode", "l4t", "python")


def facts_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The lasting part of a worker's hello."""
    gpu = about["gpu"]
    lasting = None if gpu is None else {k: gpu[k] for k in ("name", "compute_capability")}
    return {name: about[name] for name in FACTS} | {"gpu": lasting}


def evidence_of(about: Mapping[str, Any], target: Target, label: str) -> Evidence:
    """`device` where the backend finds nothing that differs from the target.

    A backend that only stands in for the target's, such as ONNX Runtime for a Jetson's TensorRT,
    measures `host` evidence.

    Raises:
        KDError: `board-mismatch`, another device than the target.
    """
    wrong = find(str(about["backend"])).differences(target, about)
    if wrong is None:
        return "host"
    if wrong:
        raise KDError(
            "board-mismatch",
            f"{label} is not {target.full_name}: {'; '.join(wrong)}",
            where=label,
            fix="name the device that it is with --target (kdcompile targets; for a Jetson "
            "NAME@jpJETPACK), or another one with --via",
        )
    return "device"
