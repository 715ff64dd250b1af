"""Answers requests on standard input, or with `kit` builds the engines of a build kit."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from kdcompile.remote.agent.errors import WorkerError, to_json


def serve(backend: str) -> int:
    """Answer requests until `quit` or the end of the input.

    Returns:
        0, or 4 where numpy or the backend is absent.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not land among the answers

    def send(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        worker = open_worker(backend)
    except WorkerError as error:
        send({"id": None, "error": to_json(error)})
        return 4
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            request = line
        send(worker.answer(request))
        if isinstance(request, dict) and request.get("op") == "quit":
            break
    return 0


def open_worker(backend: str) -> Any:
    """The worker of a backend by name; the other modules cannot be imported without numpy."""
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise WorkerError("numpy-missing", "import numpy: {}".format(error)) from error
    from kdcompile.remote.agent.worker import Worker

    return Worker(backend)


def main() -> int:
    """Run the command line, `[BACKEND]` or `kit [OPTIONS]`."""
    arguments = sys.argv[1:] or ["tensorrt"]
    if arguments[0] != "kit":
        return serve(arguments[0])
    from kdcompile.remote.agent.kit import main as build_kit

    return build_kit(os.path.dirname(os.path.abspath(sys.argv[0])), arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
