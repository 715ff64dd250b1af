"""The first lines of a worker's process: they make the work folder, then become the worker.

They are sent down the pipe before the worker's source, so that nothing is installed there and the
worker is always this version's. Their syntax is old enough for an old Python to say that it is one.

    python3 -c "import sys; exec(sys.stdin.buffer.read(SIZE_OF_THIS))" BACKEND SIZE_OF_WORKER
"""

import json
import os
import select
import sys
import threading

LEAST = (3, 8)
HUNG_UP = 1


def say(kind: str, value: object) -> None:
    """Answer as the worker does, to no request."""
    sys.stdout.write(json.dumps({"id": None, kind: value}) + "\n")
    sys.stdout.flush()


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


def main() -> None:
    """Change to the work folder and run the worker that follows on standard input."""
    if sys.version_info < LEAST:
        found = ".".join(map(str, sys.version_info[:3]))
        stop("python-old", "Python " + found + " there; the worker needs 3.8", "")
    work = os.environ.get("KDCOMPILE_CACHE") or os.path.join("~", ".cache", "kdcompile")
    work = os.path.expanduser(work)
    if work.startswith("~"):  # no HOME, and a user whom the system does not know
        stop("work-folder", "this user has no home folder", "set KDCOMPILE_CACHE there to a folder")
    work = os.path.abspath(work)
    try:
        os.makedirs(work, mode=0o700, exist_ok=True)
        os.makedirs(os.path.join(work, "blobs"), exist_ok=True)
        os.chdir(work)
    except OSError as error:
        stop("work-folder", str(error), "make that folder writable, or free the disk there")
    threading.Thread(target=watch, daemon=True).start()
    say("ok", {"work": work})
    source = sys.stdin.buffer.read(int(sys.argv.pop()))
    code = compile(source, "worker.py", "exec", dont_inherit=True)
    exec(code, {"__name__": "__main__", "__file__": "worker.py"})


if __name__ == "__main__":
    main()
