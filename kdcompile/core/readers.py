"""Readers of files that anybody may have written: bundles, records, annotations, specs.

What they have in common: a regular file, a limit on the bytes that are really read, and no value
that a document should not have (a key twice, a number that is not finite, lists in lists without
end). They raise `ValueError` and `OSError`; the caller, who knows what the file is for, makes a
`KDError` with a fix of it. Archives of arrays have `core.arrays`, weights `models.weights`.
"""

import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

MIB = 1 << 20
LARGEST_JSON = 256 * MIB  # a board's record with all its times is the largest that a build reads
LARGEST_TOML = 4 * MIB  # tomllib takes seconds for it; specs and targets have kB
LARGEST_TEXT = 1024 * MIB  # annotations of a large data set
MOST_DEEP = 64  # levels of a document; what kdcompile writes has under 12
BYTES_OF_VALUE = 16  # of a document's limit for each value, which takes up to 100 in memory
MOST_PARTS = 32  # of a key in TOML: tomllib takes the square of them, and no field lies that deep
MOST_INTEGER = 1 << 64

PIECE = 1 << 16
STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
# with every digit a 0, no plus sign and a small e, only text with one of these has a float that is
# infinite, or an integer over 64 bits (a regular expression takes four times as long as parsing)
HUGE = (b"0" * 20, b"e000")
AS_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
OTHERS = bytes(set(range(256)) - set(b"[]{}"))
AS_LISTS = bytes.maketrans(b"{}", b"[]")
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
LONG_KEY = re.compile(rf"(?<![\w\-.\"']){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MOST_PARTS}}}")


def refuse_endless(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which may never end or never begin.

    Raises:
        OSError: it is one, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder fails by itself
        raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """A regular file to be read; a FIFO is not waited for.

    Raises:
        ValueError: it is no regular file.
        OSError: it cannot be read.
    """

    def unhurried(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=unhurried) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("it is no regular file")
        yield stream


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file.

    What counts is what is read and not what the file says of itself.

    Raises:
        ValueError: it is no regular file, or has more than `most` bytes.
        OSError: it cannot be read.
    """
    parts, left = [], most + 1
    with open_regular(path) as stream:
        piece = max(PIECE, os.fstat(stream.fileno()).st_size + 1)
        while left and (part := stream.read(min(left, piece))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise ValueError(f"it has over {most} bytes, more than any build writes")
    return b"".join(parts)


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    r"""The text of a user's file, UTF-8 with or without a mark; lines end in \n.

    Raises:
        ValueError: those of `read_bounded`; it is no UTF-8 (`UnicodeDecodeError`).
        OSError: it cannot be read.
    """
    text = read_bounded(path, most).decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path, most: int = LARGEST_JSON, *, finite: bool = True) -> Any:
    """The JSON of a file, as `parse_json`.

    Raises:
        ValueError: those of `read_bounded` and of `parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(read_bounded(path, most), most, finite=finite)


def parse_json(content: bytes | str, most: int = LARGEST_JSON, *, finite: bool = True) -> Any:
    """JSON as the standard has it, and no more of it than memory and stack can take.

    Args:
        content: the document, UTF-8.
        most: bytes of such a document, by which its values are limited too.
        finite: refuse NaN and Infinity, which are not in the standard, and 1e999.

    Raises:
        ValueError: it is no UTF-8 or no JSON, has a key twice in one object, an integer over 64
            bits, over `MOST_DEEP` levels or too many values.
    """
    text = content.decode() if isinstance(content, bytes) else content
    return _parsed(text, _decoder(finite, _has_huge(text)), most // BYTES_OF_VALUE)


def line_parser(text: str, *, finite: bool = True) -> Callable[[str], Any]:
    """`parse_json` for the lines of a text, of which most have a few values.

    Looking for huge numbers takes longer than parsing such a line, so it is done once.
    """
    decoder = _decoder(finite, _has_huge(text))
    return partial(_parsed, decoder=decoder, values=LARGEST_JSON // BYTES_OF_VALUE)


def _parsed(text: str, decoder: json.JSONDecoder, values: int) -> Any:
    if len(text) > values and text.count(",") + text.count("[") + text.count("{") > values:
        raise ValueError(f"it has over {values} values")
    try:
        value = decoder.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if text.count("[") + text.count("{") > MOST_DEEP and _is_deep(text):
        raise ValueError("it is nested too deep")
    return value


def _has_huge(text: str) -> bool:
    """Whether a number of the text may be infinite, or have over 64 bits."""
    digits = text.encode(errors="replace").translate(AS_DIGITS, b"+")
    return any(run in digits for run in HUGE)


@cache
def _decoder(finite: bool, is_huge: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_constant=_refuse if finite else None,
        parse_int=_integer if is_huge else None,
        parse_float=_finite if is_huge and finite else None,
    )


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > len(str(MOST_INTEGER)) + 1 or abs(int(text)) > MOST_INTEGER:
        raise ValueError(f"{text[:24]}... has over 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:24]} is no finite number")
    return value


def _is_deep(text: str) -> bool:
    """Whether well-formed JSON has over `MOST_DEEP` levels: they are taken off from within."""
    brackets = STRING.sub("", text).encode().translate(AS_LISTS, OTHERS)
    for _ in range(MOST_DEEP):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def read_toml(path: Path, most: int = LARGEST_TOML) -> dict[str, Any]:
    """The TOML of a file, as `parse_toml`.

    Raises:
        ValueError: those of `read_text` and of `parse_toml`.
        OSError: it cannot be read.
    """
    return parse_toml(read_text(path, most))


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document; whether its numbers are finite is for its schema to say.

    Raises:
        ValueError: it is none, has over `MOST_DEEP` levels, or a key of over `MOST_PARTS` parts.
    """
    if (long := LONG_KEY.search(text)) is not None:
        line = text.count("\n", 0, long.start()) + 1
        raise ValueError(f"line {line} has a key of over {MOST_PARTS} parts")
    try:
        found = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level: list[Any] = [found]
    for _ in range(MOST_DEEP):
        below = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for each in below for one in each if isinstance(one, dict | list)]
        if not level:
            return found
    raise ValueError("it is nested too deep")


def hold(form: "type[BaseModel]", value: Any) -> None:
    """Hold a document against its form.

    Raises:
        ValueError: the first key at fault, and what is wrong there.
    """
    from pydantic import ValidationError

    try:
        form.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place!r}: {first['msg']}" if place else first["msg"]) from error
