"""Worker pool: independent evaluations in parallel processes over a shared store.

An evaluation keeps its own result in the store, so one that is finished is a cache hit the next
time, whatever stopped the others. Each computes on one CPU thread, so that its result does not
depend on how many run next to it; a GPU is left to one process.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import TypeVar

import torch

from kdcompile.core.errors import KDError
from kdcompile.core.progress import Progress, counted

log = logging.getLogger("kdcompile")
Item = TypeVar("Item")
Result = TypeVar("Result")
LOG_SECONDS = 10.0


def evaluate_all(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int, what: str
) -> list[Result]:
    """`function` of every item, in the order of the items.

    Args:
        function: of a module's top level, or a `partial` of one; items and results cross processes.
        items: independent of each other.
        jobs: processes; with 1, or with a GPU, all runs in this one.
        what: they are, for the log: "blocks".

    Raises:
        KDError: the first that an evaluation raises; `worker-killed`.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1 or torch.cuda.is_available():
        with _one_thread():
            return [function(item) for item in counted(items, len(items), "search", what)]
    return _in_processes(function, items, jobs, what)


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int, what: str
) -> list[Result]:
    progress = Progress("search", len(items), what)
    context = _context(getattr(function, "func", function).__module__)
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin)
    try:
        with _signals_held():
            futures = [pool.submit(function, item) for item in items]
        pending: set[Future[Result]] = set(futures)
        with progress:
            while pending:
                done, pending = wait(pending, LOG_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                    progress.show(progress.done + 1)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise KDError(
            "worker-killed",
            f"one of the {jobs} processes that evaluate {what} was killed, maybe for its memory",
            where=f"after {progress.done} of {len(items)} {what}",
            fix="run it again, with fewer jobs: finished ones are kept in the store",
        ) from error
    except KeyboardInterrupt:  # nobody waits for what they compute now
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let a signal wait: a process that is half started would end in a traceback of its own."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None
        and callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda given, frame: received.append(given))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _begin() -> None:
    """In a new process: one thread; Ctrl-C is for the parent, and its end is this one's too."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it runs in a process of the pool"
    parent.join()
    os._exit(1)


def _context(module: str) -> BaseContext:
    """Processes that copy nothing of this one's threads.

    They are forked from a server that has imported torch and does nothing else, where the system
    has such; else each imports it anew.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])  # ignored once the server runs
    resource_tracker.ensure_running()  # which takes Ctrl-C from itself, and gives it back to us
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # blocked there too and in what it forks: it is for the parent
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread, as in a process of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
