"""A signal while processes start ends the command, and none of them with a traceback."""

import signal
import subprocess
import sys

import pytest

from kdcompile.search.predictors import worker_pool


@pytest.fixture(autouse=True)
def _interruptible():
    """Python's own handler, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_until_the_processes_are_started():
    done, before = [], signal.getsignal(signal.SIGINT)

    def start():
        with worker_pool._signals_held():
            signal.raise_signal(signal.SIGINT)
            done.append("started")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == ["started"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_nothing_is_raised_and_the_system_keeps_what_is_its():
    before = signal.getsignal(signal.SIGTERM)
    assert before is signal.SIG_DFL
    with worker_pool._signals_held():
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


BEGUN = """
import re, signal
from multiprocessing import forkserver
from pathlib import Path
from kdcompile.search.predictors import worker_pool
worker_pool._context("kdcompile.search.predictors.worker_pool")
server = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()
blocked = int(re.search(r"^SigBlk:\\s*(\\w+)", server, re.MULTILINE)[1], 16)
assert blocked >> (signal.SIGINT - 1) & 1, server
assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def test_ctrl_c_is_for_the_parent_alone():
    """The server that forks the processes has it blocked, from its first instruction on.

    In a process of its own: another test may have begun this one's server.
    """
    done = subprocess.run(
        [sys.executable, "-c", BEGUN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
