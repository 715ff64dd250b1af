"""Reads the power and memory of one engine in a process that has no other network."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from typing import Any

from kdcompile.remote.agent.messages import message, read

NAME = "second"
POWER = {"seconds": 5.0, "idle_s": 2.0}


def read_usage(agent: str, backend: str, path: str, inputs: str, mode: str) -> dict[str, Any]:
    """The readings of memory and power of a second worker, or why there are none.

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
    requests: list[dict[str, Any]] = [
        {"op": "memory", "restart": True},
        {"op": "load", "path": path, "name": NAME},
        {"op": "time", "iterations": 3, "warmup": 1, **run},
        {"op": "memory"},
        {"op": "power", **run, **POWER},
    ]
    asked = b"".join(message(dict(request, id=1)) for request in requests)
    try:
        done = subprocess.run(
            [sys.executable, agent, backend],
            input=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except OSError as error:  # no memory for a second process
        return {"absent": f"a second process did not start: {error.strerror}"}
    replies: list[dict[str, Any]] = []
    stream = io.BytesIO(done.stdout)
    with suppress(ValueError):  # cut off
        replies += iter(lambda: read(stream), None)
    for number, request in enumerate(requests):
        text = f"the worker ended in the middle of {request['op']}"
        died = {"code": "worker-died", "message": text}
        reply = replies[number] if number < len(replies) else {"error": died}
        if "error" in reply:
            text = f"{reply['error']['code']}: {reply['error']['message']}"
            return {"absent": " ".join(text.split())}
    before, _, _, after, power = (reply["ok"] for reply in replies)
    return {"mode": mode, "before": before, "after": after, "power": power}
