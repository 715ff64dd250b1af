"""The address of a board: `ssh://[user@]host[:port][?python=PATH]`, and nothing that is not one."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from kdcompile.remote.errors import invalid

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
