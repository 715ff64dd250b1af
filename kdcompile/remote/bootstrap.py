"""The first lines of a worker's process: they make the work folder, then run the agent.

They are sent down the pipe before the agent's zip file, so that nothing is installed there and the
agent is always this version's. Their syntax is old enough for an old Python to say that it is one.

    python3 -c "import sys; exec(sys.stdin.buffer.read(SIZE_OF_THIS))" BACKEND SIZE_OF_AGENT
"""

import io
import json
import os
import select
import struct
import sys
import threading
import time
import zipfile
from importlib.util import spec_from_loader
from typing import Any, Dict

LEAST = (3, 8)
HUNG_UP = 1
ABANDONED_S = 86400


def say(kind: str, value: object) -> None:
    """Answer as the worker does, to no request."""
    body = json.dumps({"id": None, kind: value}).encode()
    sys.stdout.buffer.write(b"\0kdc" + struct.pack(">Q", len(body)) + body)  # agent.messages
    sys.stdout.buffer.flush()


def stop(code: str, message: str, fix: str) -> None:
    """End with an error and the status of an absent tool."""
    say("error", {"code": code, "message": message, "fix": fix})
    sys.exit(4)


def watch() -> None:
    """End with the connection: a build that nobody waits for would slow the next one down."""
    pipe = select.poll()
    pipe.register(0, 0)  # no event but the hang-up, which is always told
    pipe.poll()
    os._exit(HUNG_UP)


def sweep() -> None:
    """Remove inputs and outputs of sessions that were killed: after a day, for nothing tells it."""
    for name in os.listdir("."):
        if name.startswith("run-") and name.endswith(".npz"):
            try:
                if time.time() - os.stat(name).st_mtime > ABANDONED_S:
                    os.remove(name)
            except OSError:  # another session was faster
                pass


class Archive:
    """Imports modules from a zip file in memory, which leaves no file that could be changed."""

    def __init__(self, data: bytes) -> None:
        """Read the sources."""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.sources = {name: archive.read(name) for name in archive.namelist()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module or package of that name, if it is in the file."""
        base = name.replace(".", "/")
        for file in (base + "/__init__.py", base + ".py"):
            if file in self.sources:
                package = file.endswith("/__init__.py")
                return spec_from_loader(name, self, origin=file, is_package=package)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> None:
        """Leave that to Python."""

    def exec_module(self, module: Any) -> None:
        """Run a module's source."""
        self.run(module.__spec__.origin, module.__dict__)

    def run(self, file: str, names: Dict[str, Any]) -> None:
        """Run one of the sources."""
        exec(compile(self.sources[file], file, "exec", dont_inherit=True), names)


def main() -> None:
    """Change to the work folder and run the agent that follows on standard input."""
    if sys.version_info < LEAST:
        found = ".".join(map(str, sys.version_info[:3]))
        stop("python-old", "Python " + found + " there; the agent needs 3.8", "")
    work = os.environ.get("KDCOMPILE_CACHE") or os.path.join("~", ".cache", "kdcompile")
    work = os.path.expanduser(work)
    if work.startswith("~"):  # no HOME, and a user whom the system does not know
        stop("work-folder", "this user has no home folder", "set KDCOMPILE_CACHE there to a folder")
    work = os.path.abspath(work)
    try:
        os.makedirs(work, mode=0o700, exist_ok=True)
        os.makedirs(os.path.join(work, "blobs"), exist_ok=True)
        os.chdir(work)
        sweep()
    except OSError as error:
        stop("work-folder", str(error), "make that folder writable, or free the disk there")
    threading.Thread(target=watch, daemon=True).start()
    say("ok", {"work": work})
    archive = Archive(sys.stdin.buffer.read(int(sys.argv.pop())))
    sys.meta_path.insert(0, archive)
    archive.run("__main__.py", {"__name__": "__main__", "__file__": "__main__.py"})


if __name__ == "__main__":
    main()
