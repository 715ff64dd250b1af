"""A signal ends a command with one line and the shell's exit code, even in a library's C code."""

import signal
import subprocess
import sys

import pytest
from terminal import as_in_a_terminal

PROGRAM = """
import ctypes, logging, sys, time
from kdcompile.cli import stopping
import kdcompile.cli as command_line

def in_python():
    with open("half", "w"):
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            print("left in good order", flush=True)

def in_c():
    stopping.GRACE_S = 0.05
    print("ready", flush=True)
    while True:  # as a library that goes on where a signal interrupts it
        ctypes.CDLL(None).sleep(600)

def deaf():
    word = "ready"
    while True:
        try:
            print(word, flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            word = "deaf"

class Destructor:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(600)

def in_a_destructor():  # where Python drops exceptions
    del [Destructor()][0]
    time.sleep(600)

def run(**options):
    globals()[sys.argv[1]]()

command_line.cli = run
command_line.main()
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def _started(tmp_path, where):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, where],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", CODES)
def test_a_signal_leaves_every_block(tmp_path, number):
    process = _started(tmp_path, "in_python")
    process.send_signal(number)
    out, err = process.communicate()
    assert out == "left in good order\n"
    assert err.strip() == (
        f"stopped by {number.name}; the next run goes on from the last finished step"
    )
    assert process.returncode == CODES[number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_c_code_does_not_keep_it(tmp_path, number):
    """The main thread never comes back from C: the watcher ends the process after the grace."""
    process = _started(tmp_path, "in_c")
    process.send_signal(number)
    _, err = process.communicate()
    assert f"stopped by {number.name}" in err
    assert "Traceback" not in err
    assert process.returncode == CODES[number]


@pytest.mark.parametrize("number", CODES)
def test_an_interruption_that_python_drops_is_asked_again(tmp_path, number):
    process = _started(tmp_path, "in_a_destructor")
    process.send_signal(number)
    _, err = process.communicate()
    assert err.strip().startswith(f"stopped by {number.name}; ")
    assert "Traceback" not in err
    assert process.returncode == CODES[number]


def test_a_second_signal_ends_what_swallowed_the_first(tmp_path):
    process = _started(tmp_path, "deaf")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "deaf\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert err.count("stopped by SIGINT") == 1
    assert process.returncode == 130


def test_a_command_leaves_the_handlers_as_they_were():
    from kdcompile.cli.stopping import SIGNALS, stoppable

    before = [signal.getsignal(number) for number in SIGNALS]
    with stoppable() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.on_signal
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_ignored_stays_so(monkeypatch):
    """`nohup` ignores SIGHUP, and a shell's background job SIGINT."""
    from kdcompile.cli.stopping import stoppable

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
