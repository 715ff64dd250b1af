"""Commands that are ended at any moment, and all that they have left in their folder."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from killed_builds import MEASURED, _child, warm_server

from kdcompile.core.files import file_sha256

OWN = ("home", "cache", "tmp")  # folders of a command's own beside its project
PYTORCHS = "torchinductor_"


def _begun(folder, inside, words, log):
    """The command as it begins, with HOME, caches and temporary files of its own."""
    from quick_commands import hurry

    names = {"HOME": "home", "XDG_CONFIG_HOME": "home", "KDCOMPILE_CACHE": "cache", "TMPDIR": "tmp"}
    for variable, name in names.items():
        (folder / name).mkdir(exist_ok=True)
        os.environ[variable] = str(folder / name)
    tempfile.tempdir = None
    hurry()
    _child(inside, words, log, None, None)


def start(folder, inside, words, log):
    """A command in a process group of its own; it has begun where its log is there."""
    process = warm_server().Process(target=_begun, args=(folder, inside, words, log))
    process.start()
    return process


def killed(process, log, seconds, number):
    """Send a signal so long after the beginning; whether it met the command still at work."""
    while not log.is_file() and process.exitcode is None:
        time.sleep(0.005)
    process.join(seconds)
    met = process.exitcode is None
    if met:
        with suppress(ProcessLookupError):  # it is done, and was waited for, in this moment
            os.kill(process.pid, number)
    process.join()
    wait_for_group(process.pid)
    return met


def wait_for_group(group):
    """Wait for the processes of a group to be gone; the test's own limit is the limit."""
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def tree(folder):
    """Each file below a folder by its name, with its hash; without locks and PyTorch's caches.

    The entries of stages that measure have keys of one run alone: these stand under one name.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = list(path.relative_to(folder).parts)
        if path.is_dir() or any(part.startswith(PYTORCHS) for part in parts):
            continue
        if "locks" in parts and path.suffix != ".owner":
            continue
        if path.parent.name == "cache" and path.name.startswith("run-"):
            continue  # of a worker's session: the next one sweeps it when it is a day old
        if ".kdcompile" in parts[:-2] and parts[parts.index(".kdcompile") + 1] in MEASURED:
            parts[parts.index(".kdcompile") + 2] = "KEY"
        found[str(Path(*parts))] = file_sha256(path)
    temporary = folder / "tmp"
    if temporary.is_dir():
        names = (path.name for path in temporary.iterdir() if not path.name.startswith(PYTORCHS))
        found |= {f"tmp/{name}": "" for name in names}
    return found
