"""Two processes of a job as torchrun starts them, forked from this one: nothing is imported anew.

A soak test has torchrun itself start a pair.
"""

import os
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcompile.core.distributed import leave, processes


@dataclass(frozen=True)
class Left:
    """What a process left behind."""

    code: int
    stdout: str
    stderr: str


def two_processes(work, folder):
    """Call `work()` in two processes that find each other; what each left, in the order of rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sys.stdout.flush()
    sys.stderr.flush()
    children = [_forked(work, rank, port, folder) for rank in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [
        Left(code, *(_path(folder, rank, name).read_text() for name in ("out", "err")))
        for rank, code in enumerate(codes)
    ]


def _path(folder, rank, name):
    return Path(folder) / f"forked-{rank}.{name}"


def _forked(work, rank, port, folder):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(_path(folder, rank, name), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        processes.cache_clear()
        torch.set_num_threads(1)
        code = work() or 0
        leave()
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
