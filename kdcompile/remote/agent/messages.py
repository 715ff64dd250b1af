"""Messages between a worker and who asks it: a mark, the length, and so many bytes of JSON."""

from __future__ import annotations

import json
from typing import Any

MARK = b"\0kdc"  # no text that a login shell prints has a zero byte
HEAD = len(MARK) + 8
MOST_BYTES = 8 << 20  # of one; that of a build, with ten thousand layers, is a quarter of it


def message(value: Any) -> bytes:
    """A JSON value as a message."""
    body = json.dumps(value).encode()
    return MARK + len(body).to_bytes(8, "big") + body


def size_in(head: bytes) -> int:
    """How many bytes follow the first `HEAD` ones; ValueError where those begin no message."""
    size = int.from_bytes(head[len(MARK) :], "big")
    if not head.startswith(MARK):
        raise ValueError("bytes that begin no message")
    if size > MOST_BYTES:
        raise ValueError(f"a message of {size} bytes, more than {MOST_BYTES >> 20} MiB")
    return size


def read(stream: Any) -> Any:
    """The value of the next message, None at the end; ValueError where there is none."""
    head = stream.read(HEAD)
    return json.loads(stream.read(size_in(head)).decode()) if head else None
