"""Who changes a baseline."""

import getpass
import subprocess

UNKNOWN = "unknown"


def author() -> str:
    """`Name <email>` as git knows the user here, else the login name, else `unknown`."""
    name, email = _git("user.name"), _git("user.email")
    if name or email:
        return f"{name} <{email}>" if name and email else name or email
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name: Python 3.13 and before
        return UNKNOWN


def _git(key: str) -> str:
    """A value of git's configuration; empty without the value, or without git."""
    command = ["git", "config", "--get", key]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
