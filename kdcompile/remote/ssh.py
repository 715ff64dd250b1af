"""A worker on a board, through the user's own OpenSSH, and the address of a board."""

import os
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import parse_qsl, urlsplit

from kdcompile.core.errors import KDError
from kdcompile.remote import bounded
from kdcompile.remote.bounded import MOST_FILE
from kdcompile.remote.client import MIB, Place, boot_command
from kdcompile.remote.errors import (
    LOST,
    SSH_FAILED,
    board_lost,
    copy_failed,
    disk_full,
    file_differs,
    invalid,
    no_program,
    no_sftp,
    not_started,
    worker_died,
)
from kdcompile.remote.process import Gone

CLOSED = "Connection closed"  # all that sftp says where the server has no such subsystem
COPY_S = 7200.0  # of one file, over the slowest link that is of use
CONFIG = "KDCOMPILE_SSH_CONFIG"
# OpenSSH keeps the first value, so these stand before those of the user's configuration
OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "15",
    "ControlPersist": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveCountMax": "3",
    "ServerAliveInterval": "10",
    "StrictHostKeyChecking": "yes",
}
SHORT = "/tmp"  # a socket's path has about 100 characters; TMPDIR may have more


USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]")
PYTHON = re.compile(r"[A-Za-z0-9._/][A-Za-z0-9._/+-]*")
PYTHON_THERE = "python3"


@dataclass(frozen=True)
class Address:
    """The parts of an `ssh://` place, each of a form that no shell and no option reads."""

    user: str | None
    host: str
    port: int | None
    python: str

    @property
    def destination(self) -> str:
        """The address as ssh's own arguments, to try by hand."""
        port = f"-p {self.port} " if self.port else ""
        return port + (f"{self.user}@{self.host}" if self.user else self.host)

    @property
    def label(self) -> str:
        """The address as it was given, without the interpreter."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}{port}"


def parse_ssh(via: str) -> Address:
    """The parts of `ssh://[user@]host[:port][?python=PATH]`.

    Raises:
        KDError: `via-invalid`, one that a shell or OpenSSH could read as something else.
    """
    shown = masked(via)
    try:
        scheme, netloc, path, query, fragment = urlsplit(via)
    except ValueError:  # a bracket too few, or no IPv6 address in them
        netloc = ""
    # urlsplit drops line breaks
    if not netloc or scheme != "ssh" or path.strip("/") or fragment or not via.isprintable():
        raise invalid(shown, "an SSH place is ssh://[user@]host[:port][?python=PATH]")
    user, at, place = netloc.rpartition("@")
    found = re.fullmatch(r"(\[.*\]|[^:]*)(?::(\d{1,5}))?", place)
    if at and ":" in user:
        raise invalid(shown, "a password does not belong here; OpenSSH uses your keys")
    if at and not USER.fullmatch(user):
        raise invalid(shown, f"{user!r} is no user name")
    if found is None or not HOST.fullmatch(found[1]):
        raise invalid(shown, f"{place!r} is no host, or host:port")
    port = int(found[2]) if found[2] else None
    if port is not None and not 0 < port < 1 << 16:
        raise invalid(shown, f"{port} is no port")
    return Address(user or None, found[1].strip("[]"), port, _python(query, shown))


def _python(query: str, shown: str) -> str:
    options = dict(parse_qsl(query, keep_blank_values=True))
    python = options.pop("python", PYTHON_THERE)
    if options:
        raise invalid(shown, f"unknown option {min(options)!r}; there is python=PATH")
    if not PYTHON.fullmatch(python):
        raise invalid(shown, f"{python!r} is no interpreter: letters, digits and ._/+- only")
    return python


def masked(via: str) -> str:
    """A place as messages show it: what follows a user's colon may be a password."""
    return re.sub(r"^(\w+:/*[^@/:]*):.*@", r"\1:***@", via)


class SshPlace(Place):
    """A board. The worker's connection is the one that copies share.

    Args:
        address: its parts, checked.
        backend: of the worker.
        source: a zip file with the program that serves it; None for the agent.
    """

    def __init__(self, address: Address, backend: str, source: bytes | None = None) -> None:
        self._ssh, self._sftp, self._address = _program("ssh"), _program("sftp"), address
        # only its owner may enter a folder of mkdtemp: it holds the connection's socket
        self._private = Path(mkdtemp(prefix="kdc-", dir=SHORT if os.path.isdir(SHORT) else None))
        self._options = _options(address, self._private / "c")
        remote = shlex.join([address.python, *boot_command(backend, source)])
        master = ["-o", "ControlMaster=yes", address.host, remote]
        try:
            super().__init__(address.label, [self._ssh, *self._options, *master], source)
        except BaseException:
            shutil.rmtree(self._private, ignore_errors=True)
            raise

    def close(self) -> None:
        """End the worker and the connection."""
        try:
            super().close()
        finally:
            shutil.rmtree(self._private, ignore_errors=True)

    def _not_started(self, gone: Gone) -> KDError:
        address = self._address
        return not_started(self.label, address.destination, address.python, gone.status, gone.lines)

    def _gone(self, gone: Gone) -> KDError:
        """The client's own status is also that of a worker which a signal ended."""
        if gone.status == SSH_FAILED and any(LOST.search(line) for line in gone.lines):
            return board_lost(self.label)
        # OpenSSH's own words may name key files; the worker's are told
        lines = [] if gone.status == SSH_FAILED else gone.lines
        return worker_died(self.label, gone.status, lines)

    def _copy_in(self, local: Path, there: str, sha256: str) -> None:
        """Into `there.part`, which a broken copy leaves and the next one goes on with."""
        part, size = f"{there}.part", local.stat().st_size
        found = self.call("stat", path=part)
        have = int(found["bytes"]) if found["exists"] else 0
        if have >= size and found.get("sha256") != sha256:
            self.call("remove", path=part)
            have = 0
        if have < size:
            self._check_room(size - have)
            self._upload("reput" if have else "put", local, part)
        if self.call("stat", path=part).get("sha256") != sha256:
            self.call("remove", path=part)
            raise file_differs(str(local), self.label)
        self._batch(f"rename {_quoted(part)} {_quoted(there)}")

    def _copy_out(self, there: str, local: Path, sha256: str, size: int) -> None:
        """Into `.NAME.HASH.part` beside the file, likewise; the hash is that of the whole."""
        part = local.with_name(f".{local.name}.{sha256[:16]}.part")
        have = part.stat().st_size if part.is_file() else 0
        if have > size:
            part.unlink()
        if have != size:
            verb = "reget" if 0 < have < size else "get"
            self._transfer(f"{verb} {_quoted(there)} local", part, size)
        self._check_copy(part, sha256, there)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(local)

    def _send(self, local: Path, there: str) -> None:
        self._upload("put", local, there)

    def _fetch(self, there: str, local: Path, most: int) -> None:
        self._transfer(f"get {_quoted(there)} local", local, most)

    def _upload(self, verb: str, local: Path, there: str) -> None:
        """A copy to the board, whose server gives no reason where its disk is full."""
        try:
            self._transfer(f"{verb} local {_quoted(there)}", local)
        except KDError as error:
            have = int(self.call("stat", path=there).get("bytes") or 0)
            rest = (local.stat().st_size - have) / MIB
            free = self._free_mb()
            raise disk_full(self.label, self.work, free, rest) if free < rest else error from None

    def _transfer(self, line: str, local: Path, most: int = MOST_FILE) -> None:
        """One copy; `local` in the line is a link, so that no name from here is parsed there."""
        link = self._private / "local"
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(local.absolute())
        self._batch(line, most)

    def _batch(self, line: str, most: int = MOST_FILE) -> None:
        """One command of sftp over the open connection.

        Raises:
            Unbounded: it would write a file of more than `most` bytes here.
            KDError: `board-lost` where the worker is gone too, else `copy-failed`.
            ToolMissingError: `sftp-missing`, the server there offers none.
        """
        try:
            status, said = self._run_sftp(line, most)
        except subprocess.TimeoutExpired:
            raise copy_failed(self.label, [f"not done in {COPY_S:g} s"]) from None
        if status:
            self.call("hello")  # raises where the board is gone
            said = said if status > 0 else []
            if said[-1:] == [CLOSED] and self._run_sftp("pwd")[0]:
                raise no_sftp(self.label)
            raise copy_failed(self.label, said)

    def _run_sftp(self, line: str, most: int = MOST_FILE) -> tuple[int, list[str]]:
        host = self._address.host
        command = [self._sftp, "-q", "-b", "-", "-S", self._ssh, *self._options]
        words = [*command, "-o", "ControlMaster=no", f"[{host}]" if ":" in host else host]
        return bounded.run(words, line + "\n", self._private, COPY_S, most)


def _options(address: Address, socket: Path) -> list[str]:
    """Arguments that ssh and sftp share."""
    config = os.environ.get(CONFIG)
    values = {**OPTIONS, "ControlPath": str(socket)}
    values |= {"User": address.user} if address.user else {}
    values |= {"Port": str(address.port)} if address.port else {}
    options = [word for key, value in values.items() for word in ("-o", f"{key}={value}")]
    return [*(["-F", os.path.abspath(config)] if config else []), *options]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise no_program(name)
    return found


def _quoted(path: str) -> str:
    """A path as one word of an sftp batch.

    Raises:
        KDError: `via-path`, a line break, which would end the command.
    """
    if not path.isprintable():
        raise KDError(
            "via-path",
            f"{path!r} has characters that sftp does not take",
            where="a path on the board",
            fix="set KDCOMPILE_CACHE there to a folder with a plain name",
        )
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
