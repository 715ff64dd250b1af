"""Ctrl-C, SIGTERM and a terminal that closes end a command soon and in good order.

The signal raises `KeyboardInterrupt` in the main thread, so that every `with` is left: temporary
files go and workers are ended. A library that computes in C keeps Python from that; after a grace
the process ends all the same, and the next build sweeps what it left.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

GRACE_S, TICKS = 5.0, 25
SIGNALS = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
)
OURS = (signal.SIG_DFL, signal.default_int_handler)  # what is ignored (nohup) stays so
SHELL = 128  # plus the signal's number: the exit code of what a signal ended, in every shell


class Stop:
    """Whether the command was told to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._is_begun, self._over = False, threading.Event()
        self._swallowed, self.hook = False, sys.unraisablehook

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return SHELL + (self.number or signal.SIGINT)

    def line(self, what: str = "the next run goes on from the last finished step") -> str:
        """What the user is told."""
        return f"stopped by {signal.Signals(self.number or signal.SIGINT).name}; {what}"

    def begin(self) -> None:
        """Have a signal interrupt the main thread from here on, where that is caught.

        Raises:
            KeyboardInterrupt: one came before.
        """
        self._is_begun = True
        if self.number is not None:
            raise KeyboardInterrupt

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the main thread; a second signal ends the process at once."""
        if self.number is not None:
            self._leave()
        self.number = number
        if self._is_begun:
            raise KeyboardInterrupt

    def watch(self, pipe: int) -> None:
        """Wait for the byte that the system's handler writes, and then for the grace."""
        told = os.read(pipe, 1)
        while told and told[0] not in SIGNALS:
            told = os.read(pipe, 1)
        if not told:
            return
        for _ in range(TICKS):
            if self._over.wait(GRACE_S / TICKS):
                return
            if self._swallowed:
                self._swallowed, self.number = False, None
                signal.pthread_kill(threading.main_thread().ident or 0, told[0])
        self.number = self.number or told[0]
        self._leave()

    def unraisable(self, args: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a destructor or a callback: `watch` asks again."""
        if self.number is not None and args.exc_type is KeyboardInterrupt:
            self._swallowed = True
        else:
            self.hook(args)

    def over(self) -> None:
        """The command ended by itself."""
        self._over.set()

    def _leave(self) -> None:
        """End the process; nothing is flushed or removed, and no lock of Python is asked for."""
        with suppress(OSError):  # the terminal may be the one that closed
            os.write(2, f"{self.line()}\n".encode())
        os._exit(self.exit_code)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let signals end what runs inside; outside the main thread they are not ours to take."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) in OURS}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, stop.on_signal)
    sys.unraisablehook = stop.unraisable
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # no traceback out of an exit
    watcher = threading.Thread(target=stop.watch, args=(reading,), daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        if stop.number is None:  # else the handlers and the watcher stay, for the way out
            signal.set_wakeup_fd(wakeup)
            sys.unraisablehook = stop.hook
            for number, handler in before.items():
                signal.signal(number, handler)
            stop.over()
            os.close(writing)
            watcher.join()
            os.close(reading)
