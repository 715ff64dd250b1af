"""Answers requests on standard input, or with `kit` builds the engines of a build kit."""

from __future__ import annotations

import os
import sys
from typing import Any

from kdcompile.remote.agent.errors import WorkerError, to_json
from kdcompile.remote.agent.messages import message, read


def serve(backend: str) -> int:
    """Answer requests until `quit` or the end of the input.

    Returns:
        0, 1 where what comes is no message, or 4 where numpy or the backend is absent.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land among the answers

    def send(value: dict[str, Any]) -> None:
        answers.write(message(value))
        answers.flush()

    try:
        worker = open_worker(backend)
    except WorkerError as error:
        send({"id": None, "error": to_json(error)})
        return 4
    request: Any = {}
    while not (isinstance(request, dict) and request.get("op") == "quit"):
        try:
            request = read(sys.stdin.buffer)
        except ValueError as error:
            send({"id": None, "error": to_json(WorkerError("request-invalid", str(error)))})
            return 1
        if request is None:
            break
        send(worker.answer(request))
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
