"""A hostile or dying board: one error or an answer, in bounded time and memory.

More than 200 answers to requests, drawn with a seed, through the same reading as over SSH; and real
processes that write without end, in drops or not at all, each with a short deadline.
"""

import random
import resource
import sys
import time

import pytest
from hostile_answers import WAYS, answered
from hostile_place import GOOD

from kdcompile.remote.agent.messages import MOST_BYTES
from kdcompile.remote.process import BadAnswer, Gone, WorkerProcess

TURNS = 8  # of each way with each operation


@pytest.mark.parametrize("way", WAYS)
def test_any_answer_is_one_error_or_an_answer(way):
    rng = random.Random(way.__name__)
    tried = [answered(way(rng, good), op) for op, good in GOOD.items() for _ in range(TURNS)]
    assert tried.count(False) >= WAYS[way] * len(tried)


def test_enough_is_tried():
    assert len(WAYS) * len(GOOD) * TURNS >= 200


BEGIN = """
import os, signal, sys, time
out, err = sys.stdout.buffer, sys.stderr.buffer
w = lambda b: (out.write(b), out.flush())
m = lambda b, n=None: w(bytes([0]) + b"kdc" + (len(b) if n is None else n).to_bytes(8, "big") + b)
"""
PROCESSES = {
    "silent": ("time.sleep(60)", TimeoutError),
    "text without an end": ("while True: w(b'{' * 65536)", BadAnswer),
    "a message without an end": ("m(b'{', 1 << 63)\nwhile True: w(b' ' * 65536)", BadAnswer),
    "a message that never ends": ("m(b'{', 8 << 20); time.sleep(60)", TimeoutError),
    "answers without an end": ('while True: m(b\'{"id": 9, "ok": {}}\')', BadAnswer),
    "notes": ("m(b'{\"note\": 1}'); time.sleep(60)", BadAnswer),
    "noise among answers": ("m(b'{}'); w(b'Welcome' * 9); time.sleep(60)", BadAnswer),
    "in drops": ("m(b'', 99)\nfor i in range(99): w(b' '); time.sleep(0.05)", TimeoutError),
    "errors without an end": ("while True: err.write(b'x' * 65536)", TimeoutError),
    "deaf": ("signal.signal(15, signal.SIG_IGN); time.sleep(60)", TimeoutError),
    "dies": ('m(b\'{"id": 1, "ok\', 99); sys.exit(7)', Gone),
    "dies in the length": ("w(bytes([0]) + b'kdc' + bytes(3)); sys.exit(7)", Gone),
    "is killed": ("os.kill(os.getpid(), 9)", Gone),
}


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_process_without_an_end_is_ended(kind):
    code, error = PROCESSES[kind]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    worker = WorkerProcess([sys.executable, "-S", "-c", BEGIN + code])
    with pytest.raises(error):
        worker.ask({"op": "hello"}, 0.5 if error is TimeoutError else 20.0)
    worker.close(at_once=True)
    assert time.monotonic() - began < 20.0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 8 * MOST_BYTES
