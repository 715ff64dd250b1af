"""Builds and proves the engines of this kit on the board: `python3 build_engine.py --help`.

With `--images IMAGE...` it then times whole frames of `infer.py` on these image files.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BUILT = (0, 3, 5)  # exit codes of a build that has an outcome


def photos_in(arguments: list[str]) -> list[str]:
    """The files after `--images`, which are taken out of the arguments."""
    if "--images" not in arguments:
        return []
    start = arguments.index("--images")
    found: list[str] = []
    for argument in arguments[start + 1 :]:
        if argument.startswith("--"):
            break
        found.append(argument)
    del arguments[start : start + 1 + len(found)]
    return found


def record_of(arguments: list[str]) -> str:
    """Where the build writes `device.json`."""
    out = os.path.join(HERE, "out")
    for before, argument in zip(["", *arguments], arguments):
        if argument.startswith("--out="):
            out = argument[len("--out=") :]
        out = argument if before == "--out" else out
    return os.path.join(out, "device.json")


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the kit stays as it was shipped, and its bundle intact
    sys.path[0] = os.path.join(HERE, "agent.pyz")  # in place of this folder

    from kdcompile.remote.agent.kit import main

    arguments = sys.argv[1:]
    photos = photos_in(arguments)
    code = main(HERE, arguments)
    if photos and code in BUILT:
        sys.path.insert(0, HERE)
        import frame

        stream = sys.stderr if "--json" in arguments else sys.stdout  # which has one document
        code = frame.timed(HERE, record_of(arguments), photos, stream) or code
    sys.exit(code)
