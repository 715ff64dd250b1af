"""Where a network is built and timed: `--via` as a place.

    None                                    this process's interpreter
    python:/path/to/python                  another interpreter of this machine
    ssh://[user@]host[:port][?python=PATH]  a board, with the user's own OpenSSH

Over SSH the user's configuration, keys, agent and jump hosts hold; `$KDCOMPILE_SSH_CONFIG` names a
configuration file to use in their place (OpenSSH's `-F`). Nothing asks for a password, and an
unknown host key is refused.
"""

import sys

from kdcompile.core.backends import is_served, program
from kdcompile.core.errors import KDError
from kdcompile.remote.address import masked, parse_ssh
from kdcompile.remote.client import Place
from kdcompile.remote.errors import invalid
from kdcompile.remote.local import LocalPlace
from kdcompile.remote.ssh import SshPlace

__all__ = ["Place", "open_place"]


def open_place(via: str | None, backend: str) -> Place:
    """Start a worker somewhere and greet it; used as a context manager.

    Args:
        via: see the module's first lines.
        backend: a name of `core.backends`. One that this interpreter serves runs here only.

    Raises:
        KDError: `via-invalid`, `via-python`, `backend-local`; over SSH `host-key`, `ssh-refused`,
            `ssh-unreachable`, `ssh-failed`; `worker-died`.
        ToolMissingError: OpenSSH here, or Python, numpy or the backend there, is absent.
    """
    served = is_served(backend)
    if via is None:
        source = program(backend) if served else None
        return LocalPlace("this machine", sys.executable, backend, source)
    if served:
        raise KDError(
            "backend-local",
            f"{backend} runs in this interpreter only, and a place is named",
            where=f"--via {masked(via)}",
            fix="leave --via out, and run kdcompile on that machine",
        )
    kind, colon, rest = via.partition(":")
    if kind == "python" and rest:
        return LocalPlace(via, rest, backend)
    if kind == "ssh" and colon:
        return SshPlace(parse_ssh(via), backend)
    raise invalid(masked(via), "a place is python:PATH or ssh://[user@]host[:port]")
