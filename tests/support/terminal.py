"""Programs started as from a terminal, whatever signals the tests' own parent ignores."""

import signal

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def as_in_a_terminal():
    """For `preexec_fn`: `nohup` ignores SIGHUP, a background job of a script SIGINT."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)
