"""The folder of baselines in a repository (a folder per device class), and who writes to it.

.kdcompile-baselines/nvidia-jetson-orin-nano/crowd.json
"""

import getpass
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError, nearest

FOLDER = Path(".kdcompile-baselines")
NAMING = ("module", "gpu", "cpu")  # of the facts: a board by its module, a card before its host


def device_class(environment: Mapping[str, Any]) -> str:
    """The name of a device's class, by its facts: letters, digits and dashes.

    A network on the CPU of a machine with a GPU is of the CPU's class.
    """
    facts = environment.get("facts", environment)
    named = next((str(facts[key]) for key in NAMING if facts.get(key)), "")
    return slug(named) or slug(str(facts.get("platform", ""))) or "device"


def slug(text: str) -> str:
    """A file name of a text: `Intel(R) Xeon(R) CPU @ 2.20GHz` to `intel-xeon-cpu-2-20ghz`."""
    bare = re.sub(r"\((r|tm|c)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", bare).strip("-")


def check_name(name: str, what: str) -> str:
    """A name that can be a file's on every system.

    Raises:
        KDError: `baseline-name`.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return name
    raise KDError(
        "baseline-name",
        f"{name!r} cannot be a {what}'s name",
        where=what,
        fix="use letters, digits and ._- and begin with a letter or digit, "
        f"such as {slug(name) or 'crowd'}",
    )


def files(folder: Path) -> list[Path]:
    """Every baseline file, by class and name; not those that still gather their runs."""
    return sorted(f for f in folder.glob("*/*.json") if not f.name.endswith(".partial.json"))


def find(folder: Path, name: str | None, device: str | None = None) -> list[Path]:
    """The files of a name; all files without one.

    Args:
        folder: of baselines.
        name: of a baseline, its `CLASS/NAME`, or None.
        device: one class only.

    Raises:
        KDError: `baseline-missing`.
    """
    every = [file for file in files(folder) if device is None or file.parent.name == device]
    found = [file for file in every if name is None or name in names_of(file)]
    if name is not None and not found:
        known = sorted({file.stem for file in every})
        raise KDError(
            "baseline-missing",
            f"no baseline is called {name!r}{nearest(name, known)}",
            where=str(folder),
            fix=f"name one of {', '.join(known)}" if known
            else f"make one: kdcompile baseline init ARTIFACT {name}",
        )  # fmt: skip
    return found


def names_of(file: Path) -> tuple[str, str]:
    """What a baseline may be called: its name, and with its class."""
    return file.stem, f"{file.parent.name}/{file.stem}"


def check_writable(file: Path) -> None:
    """Try the nearest folder that is there: nothing is made and nothing left.

    Raises:
        KDError: `baseline-folder`.
    """
    folder = file.absolute().parent
    try:
        file.exists()  # refuses a name that no file can have
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise unwritable(file, error) from error


def check_new(file: Path) -> None:
    """Refuse a file that cannot be written, or is there already.

    Raises:
        KDError: `baseline-folder`, `baseline-exists`.
    """
    check_writable(file)
    if file.exists():
        raise KDError(
            "baseline-exists",
            "there is a file of this name, whose samples and history would be lost",
            where=str(file),
            fix="name another file, or move this one away; kdcompile baseline keeps a history",
        )


def unwritable(file: Path, error: OSError | ValueError) -> KDError:
    """The error of a baseline's file that cannot be written."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    return KDError(
        "baseline-folder",
        f"the baseline cannot be written: {why}",
        where=str(file),
        fix="name a file in a folder that you may write to",
    )


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
