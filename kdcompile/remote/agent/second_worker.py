"""Reads the power and memory of one engine in a process that has no other network."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

from kdcompile.core.errors import KDError

NAME = "second"
POWER = {"seconds": 5.0, "idle_s": 2.0}


class SecondWorker:
    """A second worker, asked by JSON lines; a context manager that ends it."""

    def __init__(self, agent: str, backend: str) -> None:
        """Start the agent's file with a backend by name."""
        self._process = subprocess.Popen(
            [sys.executable, agent, backend],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> SecondWorker:
        """Itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def ask(self, **request: Any) -> dict[str, Any]:
        """An answer of the worker, or its error, raised."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None, "both are pipes"
        assert back is not None, "both are pipes"
        with suppress(BrokenPipeError):  # one that ended at once has said why
            to.write((json.dumps(dict(request, id=1)) + "\n").encode())
            to.flush()
        line = back.readline()
        if not line:
            raise KDError("worker-died", f"the worker ended in the middle of {request['op']}",
                          fix="free memory on the board, and run this again")  # fmt: skip
        reply = json.loads(line.decode())
        if "error" in reply:
            raise KDError(**reply["error"])
        answer: dict[str, Any] = reply["ok"]
        return answer


def read_usage(agent: str, backend: str, path: str, inputs: str, mode: str) -> dict[str, Any]:
    """The worker's readings of memory and power, or why there are none; `usage` judges them.

    Args:
        agent: the path of `agent.pyz`.
        backend: by name.
        path: of the built engine.
        inputs: npz file.
        mode: in which it runs.

    Returns:
        `absent`, a reason; or `mode`, `before` and `after` (of `memory`), and `power`.
    """
    run = {"inputs": inputs, "name": NAME, "mode": mode}
    try:
        with SecondWorker(agent, backend) as worker:
            before = worker.ask(op="memory", restart=True)
            worker.ask(op="load", path=path, name=NAME)
            worker.ask(op="time", iterations=3, warmup=1, **run)
            after = worker.ask(op="memory")
            power = worker.ask(op="power", **run, **POWER)
    except KDError as error:
        return {"absent": " ".join(f"{error.code}: {error.message}".split())}
    except OSError as error:  # no memory for a second process
        return {"absent": f"a second process did not start: {error.strerror}"}
    return {"mode": mode, "before": before, "after": after, "power": power}
