"""Files with something wrong in them, by a seed: what discs, copies and people do to a good one."""

import random
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fuzzing import as_json, as_toml, outcome, read
from parsers import Parser

Mutation = Callable[[bytes, random.Random], bytes]
MOST_SECONDS = 5.0  # of reading one file that has a few kB
HUGE = [
    "9" * 30, "1e999", "-1e400", "1" + "0" * 5000, str(1 << 63), "-0", "NaN", "Infinity", "1e-400",
]  # fmt: skip
VALUES = [
    "", "1", True, None, -1, 0, 1e308, 2**63, [], {}, [[]], "\0", "../x", "x" * 5000, [0.5] * 99,
]  # fmt: skip
NUMBER = re.compile(rb"-?\d+(\.\d+)?")
KEY = re.compile(rb'"[^"\\]*":')


def flipped(content: bytes, random_: random.Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 8)):
        changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def cut(content: bytes, random_: random.Random) -> bytes:
    """The end is missing."""
    return content[: random_.randrange(len(content))]


def holed(content: bytes, random_: random.Random) -> bytes:
    """A sector of zeros, or of another place of the file, somewhere."""
    start, size = random_.randrange(len(content)), random_.choice([1, 4, 16, 512])
    other = random_.randrange(len(content))
    sector = random_.choice([bytes(size), content[other : other + size], b""])
    return content[:start] + sector + content[start + size :]


def huge_number(content: bytes, random_: random.Random) -> bytes:
    """Another number in the place of one."""
    places = list(NUMBER.finditer(content))
    if not places:
        return flipped(content, random_)
    place = random_.choice(places)
    return content[: place.start()] + random_.choice(HUGE).encode() + content[place.end() :]


def doubled_key(content: bytes, random_: random.Random) -> bytes:
    """A key of an object twice, or any line twice."""
    keys = list(KEY.finditer(content))
    if keys:
        place = random_.choice(keys)
        return content[: place.start()] + place.group() + b" 1, " + content[place.start() :]
    lines = content.split(b"\n")
    at = random_.randrange(len(lines))
    return b"\n".join([*lines[:at], lines[at], *lines[at:]])


def deep(content: bytes, random_: random.Random) -> bytes:
    """Lists in lists, in the place of a number or anywhere."""
    levels = random_.choice([10, 60, 70, 900, 20_000])
    nest = b"[" * levels + b"]" * levels if random_.random() < 0.7 else b'{"a":' * levels
    places = list(NUMBER.finditer(content)) or [re.compile(b"").match(content)]
    place = random_.choice(places)
    return content[: place.start()] + nest + content[place.end() :]


def other_value(parser: Parser) -> Mutation:
    """A document with another value in one of its places, its digest right again."""

    def change(content: bytes, random_: random.Random) -> bytes:
        root = {"": read(parser, content)}
        place, key = root, ""
        while isinstance(place[key], dict | list) and place[key] and random_.random() < 0.8:
            place = place[key]
            key = random_.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = random_.choice(VALUES)
        return (as_json if parser.kind == "json" else as_toml)(parser.seal(root[""]))

    return change


@dataclass
class Tried:
    """What became of the mutated files of one reader."""

    files: int = 0
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0

    def __str__(self) -> str:
        """A line for the terminal."""
        codes = ", ".join(f"{code} {count}" for code, count in self.refused.most_common(4))
        return (
            f"{self.files} files, {self.read} read, {self.refused.total()} refused ({codes}), "
            f"slowest {self.slowest:.2f} s, at most {self.largest >> 20} MiB"
        )


def tried(parser: Parser, files: int, seed: int) -> Tried:
    """Read mutated files; each is read or refused by one `KDError`, in bounded time and memory.

    Memory is what Python and numpy ask for: it is counted of every hundredth file, for counting
    slows reading down.
    """
    random_, found = random.Random(f"{parser.name} {seed}"), Tried()
    mutations: list[Mutation] = [flipped, cut, holed, huge_number, doubled_key, deep]
    mutations += [other_value(parser)] * 2 if parser.kind != "other" else []
    good = parser.good()
    for number in range(files):
        mutation, whole = mutations[number % len(mutations)], random_.choice(good)
        content = mutation(whole, random_)
        counted = number % 100 < len(mutations)
        if counted:
            tracemalloc.start()
        start = time.process_time()
        try:
            refusal = outcome(parser, content)
        except BaseException as error:
            error.add_note(
                f"{parser.name}, {mutation}, file {number} of seed {seed}: {content[:300]!r}"
            )
            raise
        found.slowest = max(found.slowest, time.process_time() - start)
        if counted:
            found.largest = max(found.largest, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        found.files += 1
        if refusal is None:
            found.read += 1
        else:
            found.refused[refusal.code] += 1
    assert found.slowest < MOST_SECONDS, found
    assert found.largest < parser.most, found
    return found
