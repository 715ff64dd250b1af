"""What the engine that ships takes of the board: read in a process that has no other network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from stop import Stop

NAME = "alone"
POWER = {"seconds": 5.0, "idle_s": 2.0}
WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")


class Alone:
    """A second worker, asked by JSON lines; a context manager that ends it."""

    def __init__(self, backend: str) -> None:
        """Start it with a backend by name."""
        self._process = subprocess.Popen(
            [sys.executable, WORKER, backend],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Alone:
        """Itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def ask(self, **request: Any) -> dict[str, Any]:
        """An answer of the worker, or its error as `Stop`."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None, "both are pipes"
        assert back is not None, "both are pipes"
        with suppress(BrokenPipeError):  # one that ended at once has said why
            to.write((json.dumps(dict(request, id=1)) + "\n").encode())
            to.flush()
        line = back.readline()
        if not line:
            raise Stop("worker-died", f"the worker ended in the middle of {request['op']}",
                       "free memory on the board, and run this again")  # fmt: skip
        reply = json.loads(line.decode())
        if "error" in reply:
            raise Stop(**reply["error"])
        answer: dict[str, Any] = reply["ok"]
        return answer


def taken(backend: str, path: str, inputs: str, mode: str) -> dict[str, Any]:
    """The worker's readings of memory and power, to be judged by `usage.py`; or why there are none.

    Args:
        backend: by name.
        path: of the built engine.
        inputs: npz file.
        mode: in which it runs.

    Returns:
        `absent`, a reason; or `mode`, `before` and `after` (of `memory`), and `power`.
    """
    run = {"inputs": inputs, "name": NAME, "mode": mode}
    try:
        with Alone(backend) as worker:
            before = worker.ask(op="memory", restart=True)
            worker.ask(op="load", path=path, name=NAME)
            worker.ask(op="time", iterations=3, warmup=1, **run)
            after = worker.ask(op="memory")
            power = worker.ask(op="power", **run, **POWER)
    except Stop as error:
        return {"absent": " ".join(f"{error.code}: {error.message}".split())}
    except OSError as error:  # no memory for a second process
        return {"absent": f"a second process did not start: {error.strerror}"}
    return {"mode": mode, "before": before, "after": after, "power": power}
