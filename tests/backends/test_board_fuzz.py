"""A hostile or dying board: one error or an answer, in bounded time and memory.

More than 200 answers to requests, drawn with a seed, through the same reading as over SSH; and real
processes that write without end, in drops or not at all, each with a short deadline.
"""

import copy
import random
import resource
import sys
import time

import pytest
from hostile_place import GOOD, HostilePlace, framed, reply, start

from kdcompile.core.errors import KDError
from kdcompile.remote.agent.messages import HEAD, MOST_BYTES, message
from kdcompile.remote.process import BadAnswer, Gone, WorkerProcess

TURNS = 8  # of each way with each operation
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n::error::x\x00\x9b\u202e\ud800"
ODD = (
    None, True, False, 0, -1, 1, 2**63, 1e308, "", "1", "x" * 5000, ESCAPES, [], {}, [[]],
    [None] * 1000, {"": {}}, {ESCAPES: ESCAPES},
)  # fmt: skip


def fields(value, path=()):
    """The place of every value in an answer."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from fields(inner, (*path, key))


def other_type(rng, good):
    """One or more of its values become others."""
    answer = copy.deepcopy(good)
    for _ in range(rng.randint(1, 3)):
        *outer, last = rng.choice(list(fields(answer)) or [("more",)])
        inside = answer
        for key in outer:
            inside = inside[key]
        inside[last] = rng.choice(ODD)
    return reply(answer, 2)


def other_id(rng, good):
    ids = [None, 0, 1, 3, -2, 2.5, "2", True, [2], {"id": 2}, 10**19, 10**30]
    return reply(good, rng.choice(ids)) + reply(good, rng.choice(ids))


def several(rng, good):
    """Answers out of their order, some with noise between them."""
    parts = [reply(good, number) for number in (1, 2, 3)] + [message({"note": 1}), b"Welcome\n"]
    rng.shuffle(parts)
    return b"".join(parts)


def binary(rng, good):
    """A good answer with some of its bytes changed, or nothing but noise."""
    if rng.random() < 0.3:
        return rng.choice([framed, bytes])(rng.randbytes(300))
    changed = bytearray(reply(good, 2))
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng, good):
    """The board dies in the midst of its answer."""
    whole = reply(good, 2)
    return whole[: rng.randrange(len(whole) - 1)]


def other_length(rng, good):
    """The answer's length is another: a byte more or less, none, or more than any may have."""
    body = reply(good, 2)[HEAD:]
    others = [
        0,
        1,
        len(body) - 1,
        len(body) + 1,
        MOST_BYTES,
        MOST_BYTES + 1,
        2**31,
        2**63,
        2**64 - 1,
    ]
    return framed(body, rng.choice(others)) + rng.choice([b"", reply(good, 2)])


def deep(rng, good):
    depth = rng.choice([20, 40, 1000, 60_000])
    opens, closes = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return framed(b'{"id": 2, "ok": ' + opens * depth + b"1" + closes * depth + b"}")


def huge(rng, good):
    """More than may be one answer; or less, in a field that is none."""
    size = rng.choice([200_000, MOST_BYTES + 1])
    more = {"id": 2, "ok": {**good, "more": "x" * size}}
    return message(more | rng.choice([{}, {"more": 1}]))


def failure(rng, good):
    said = {key: rng.choice([*ODD, "file"]) for key in ("code", "message", "fix")}
    return message({"id": 2, "error": said})


# each way, and the part of its answers that must at least be refused
WAYS = {
    other_type: 0.5, other_id: 1.0, several: 0.5, binary: 0.5, cut: 1.0, other_length: 1.0,
    deep: 1.0, huge: 1.0, failure: 1.0,
}  # fmt: skip


def printable(value):
    """Whether no text in an answer speaks to a terminal."""
    if isinstance(value, dict):
        return all(printable(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(printable(part) for part in value)
    return not isinstance(value, str) or value.isprintable()


def answered(script, op):
    """Whether the answer was taken; what is told of any other is held against its form."""
    try:
        answer = HostilePlace(*start(), script, b"").call(op)
    except KDError as error:
        refused = error
    except AssertionError as error:
        if "the script is too short" not in str(error):
            raise
        return False  # the board died; with a process it is `Gone`, see below
    else:
        assert printable(answer)
        return True
    block = str(refused)
    assert len(block) < 2000
    assert all(c.isprintable() or c == "\n" for c in block)
    assert refused.fix
    return False


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
