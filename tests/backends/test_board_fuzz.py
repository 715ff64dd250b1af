"""A hostile or dying board: one error or an answer, in bounded time and memory.

More than 200 answers to requests, drawn with a seed, through the same reading as over SSH; and real
processes that write without end, in drops or not at all, each with a short deadline.
"""

import copy
import json
import random
import resource
import sys
import time

import pytest
from hostile_place import GOOD, HostilePlace, line, start

from kdcompile.core.errors import KDError
from kdcompile.remote.process import MOST_BYTES, BadAnswer, Gone, WorkerProcess

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
    return line(answer, 2)


def other_id(rng, good):
    ids = [None, 0, 1, 3, -2, 2.5, "2", True, [2], {"id": 2}, 10**19, 10**30]
    return line(good, rng.choice(ids)) + line(good, rng.choice(ids))


def several(rng, good):
    """Answers out of their order, among noise."""
    lines = [line(good, number) for number in (1, 2, 3)] + [b'{"note": 1}\n', b"Welcome\n"]
    rng.shuffle(lines)
    return b"".join(lines)


def binary(rng, good):
    """A good line with some of its bytes changed, or nothing but noise."""
    if rng.random() < 0.3:
        return b"{" + rng.randbytes(300) + b"\n"
    changed = bytearray(line(good, 2))
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng, good):
    """The board dies in the midst of its answer."""
    whole = line(good, 2)
    return whole[: rng.randrange(len(whole) - 1)]


def deep(rng, good):
    depth = rng.choice([20, 40, 1000, 60_000])
    opens, closes = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return b'{"id": 2, "ok": ' + opens * depth + b"1" + closes * depth + b"}\n"


def huge(rng, good):
    """More than may be one answer; or less, which a build of many layers is too."""
    size = rng.choice([200_000, MOST_BYTES + 1])
    return line(good, 2)[:-2] + b', "more": "' + b"x" * size + b'"}\n'


def failure(rng, good):
    said = {key: rng.choice([*ODD, "file"]) for key in ("code", "message", "fix")}
    return json.dumps({"id": 2, "error": said}).encode() + b"\n"


# each way, and the part of its answers that must at least be refused
WAYS = {
    other_type: 0.5, other_id: 1.0, several: 0.5, binary: 0.5, cut: 1.0, deep: 0.9, huge: 0.25,
    failure: 1.0,
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
        answer = HostilePlace(*start(), script or b"\n", b"").call(op)
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


PROCESSES = {
    "silent": ("import time; time.sleep(60)", TimeoutError),
    "a line without an end": ("while True: w(b'{' * 65536)", BadAnswer),
    "noise without an end": ("while True: w(b'noise' * 99 + bytes([10]))", TimeoutError),
    "answers without an end": ('while True: w(b\'{"id": 9, "ok": {}}\\n\')', BadAnswer),
    "notes without an end": ("while True: w(b'{\"note\": 1}\\n'); time.sleep(0.01)", TimeoutError),
    "in drops": ("for b in b'{\"id\": 1, ' * 99: w(bytes([b])); time.sleep(0.05)", TimeoutError),
    "errors without an end": ("while True: e.write(b'x' * 65536)", TimeoutError),
    "deaf": ("import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)", TimeoutError),
    "dies": ('w(b\'{"id": 1, "ok\'); sys.exit(7)', Gone),
    "is killed": ("import os; os.kill(os.getpid(), 9)", Gone),
}


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_process_without_an_end_is_ended(kind):
    code, error = PROCESSES[kind]
    begin = "import sys, time; w = lambda b: (o.write(b), o.flush()); "
    begin += "o, e = sys.stdout.buffer, sys.stderr.buffer\n"
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    worker = WorkerProcess([sys.executable, "-S", "-c", begin + code])
    with pytest.raises(error):
        worker.ask({"op": "hello"}, 0.5 if error is TimeoutError else 20.0)
    worker.close(at_once=True)
    assert time.monotonic() - began < 20.0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 8 * MOST_BYTES
