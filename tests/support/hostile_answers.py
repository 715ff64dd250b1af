"""Answers of a hostile board, drawn in several ways, and what must hold of each."""

import copy

from hostile_place import HostilePlace, framed, reply, start

from kdcompile.core.errors import KDError
from kdcompile.remote.agent.messages import HEAD, MOST_BYTES, message
from kdcompile.remote.answers import MOST_CHARS

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
        inside[last] = copy.deepcopy(rng.choice(ODD))
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
    assert len(block) < 2 * MOST_CHARS + 1000  # an error's message and fix
    assert all(c.isprintable() or c == "\n" for c in block)
    assert refused.fix
    return False
