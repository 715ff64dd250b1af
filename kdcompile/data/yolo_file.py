"""`data.yaml` of the YOLO layout: the names of the classes, and where the images of a split lie.

Read without a YAML library: keys at the left margin with a value beside them or a block below, in
block style or in brackets. What else it may hold (a download script, nested tables) is passed over.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcompile.core.errors import KDError
from kdcompile.core.readers import read_text

KEY = re.compile(r"^([A-Za-z_][\w-]*):(?:\s+(.*))?$")
ITEM = re.compile(r"^\s*(?:-\s+|(\d+)\s*:\s*)(.*)$")
FIX = "write names: as a block, one `0: disc` a line from 0 on, or as a list ['disc', 'square']"


@dataclass(frozen=True)
class YoloFile:
    """What the file says.

    Args:
        names: of the classes by index.
        values: of the other keys, each a list of texts.
    """

    names: tuple[str, ...]
    values: Mapping[str, Sequence[str]]


def read_yolo(path: Path) -> YoloFile:
    """The file.

    Raises:
        KDError: `annotations-missing` or `annotations-syntax`.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise KDError(
            "annotations-missing",
            f"the description of the data cannot be read: {error}",
            where=str(path),
            fix="set data.root to its folder, and data.annotations to its name",
        ) from error
    values = {key: _items(key, lines, path) for key, lines in _blocks(text).items()}
    names = values.pop("names", [])
    if not names or len(set(names)) < len(names):
        raise _syntax("names no classes, or one twice", path)
    count = values.get("nc", [])
    if count and count != [str(len(names))]:
        raise _syntax(f"has nc: {count[0]}, and {len(names)} names", path)
    return YoloFile(tuple(names), values)


def _blocks(text: str) -> dict[str, list[str]]:
    """The lines of each key at the left margin, the first beside it."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in text.splitlines():
        plain = _uncommented(line)
        match = KEY.match(plain)
        if match:
            key = match[1]
            found[key] = [match[2] or ""]
        elif plain.strip() and key:
            found[key].append(plain)
    return found


def _items(key: str, lines: Sequence[str], path: Path) -> list[str]:
    """A value as a list of texts."""
    first, below = lines[0].strip(), lines[1:]
    if first[:1] in ("[", "{"):
        whole = " ".join([first, *below]).strip()
        if whole[-1] != {"[": "]", "{": "}"}[whole[0]]:
            raise _syntax(f"has a bracket under {key} that does not close", path)
        parts = re.split(r",(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", whole[1:-1])
        below, first = [f"- {p.strip()}" if whole[0] == "[" else p for p in parts if p.strip()], ""
    if first:
        return [_unquoted(first)]
    matches = [ITEM.match(line) for line in below]
    if key != "names":
        return [_unquoted(match[2]) for match in matches if match and not match[1]]
    if not all(matches):
        raise _syntax("has a line under names that is no class", path)
    numbers = [match[1] for match in matches if match]
    if any(numbers) and [int(n or -1) for n in numbers] != list(range(len(numbers))):
        raise _syntax(f"numbers its classes {', '.join(map(str, numbers))}", path)
    return [_unquoted(match[2]) for match in matches if match]


def _uncommented(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).rstrip()


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _syntax(problem: str, path: Path) -> KDError:
    return KDError("annotations-syntax", f"{path.name} {problem}", str(path), FIX)
