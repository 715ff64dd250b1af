"""Format `points-jsonl`: one JSON object a line with an image path and its points.

    {"image": "images/a.jpg", "points": [[x, y], ...]}

Split lists name images by that path or by file name alone, where only one image has it.
"""

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.plugins import register
from kdcompile.core.readers import line_parser, parse_json, read_text
from kdcompile.data.entry import Entry, read_list, require_image
from kdcompile.data.formats import Files

FIX = 'write {"image": "images/a.jpg", "points": [[x, y], ...]}'


HELD = 64 << 20  # bytes of annotations that are kept as text, for the next of a build's stages


class _Line(NamedTuple):
    """A line of the annotations, whose form was checked."""

    number: int
    text: str


def entries(data: Data) -> dict[str, list[Entry]]:
    """The entries of each split, in the order of its list.

    Raises:
        KDError: `annotations-missing`, `annotations-syntax`, `annotation-twice`,
            `annotation-ambiguous`, `annotation-missing`, and those of the split lists.
    """
    path = data.root / data.annotations
    lines = _lines(path)
    named = _Named(lines)
    return {
        split: [
            _entry(name, named, data.root, path, split)
            for name in read_list(data.root / getattr(data, split))
        ]
        for split in ("train", "val", "test")
    }


class _Named:
    """The annotated images by their paths, and by file name alone once one is asked for so."""

    def __init__(self, lines: Mapping[str, _Line]) -> None:
        self.lines = lines

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The images of each file name."""
        found: dict[str, list[str]] = {}
        for image in self.lines:
            found.setdefault(image.rsplit("/", 1)[-1], []).append(image)
        return found

    def find(self, name: str) -> list[str]:
        """The images that a split's line may mean."""
        return [name] if name in self.lines else self.by_name.get(name, [])


def _entry(name: str, named: _Named, root: Path, path: Path, split: str) -> Entry:
    """The entry of a line of a split list."""
    found = named.find(name)
    if len(found) > 1:
        raise KDError(
            "annotation-ambiguous",
            f"the {split} split names {name!r}, which may be {' and '.join(found[:2])}",
            where=f"[data] {split}",
            fix="name it by its path there, as the annotations do",
        )
    if not found:
        raise KDError(
            "annotation-missing",
            f"the {split} split names {name!r}, which has no annotation"
            + nearest(name, [*named.lines, *named.by_name]),
            where=str(path),
            fix="annotate the image, or take its line out of the split list",
        )
    image = require_image(root / found[0], split)
    points = parse_json(named.lines[found[0]].text, finite=False)["points"]
    return Entry(name, image, points, path)


def _lines(path: Path) -> Mapping[str, _Line]:
    """The lines by image, each checked; the same file is not read again by this process."""
    try:
        about = path.stat()
        mark = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        read = _held if about.st_size <= HELD else _read
        return read(path, mark)
    except (OSError, ValueError) as error:
        raise KDError(
            "annotations-missing",
            f"the annotations cannot be read: {error}",
            where=str(path),
            fix="set data.root and data.annotations to where the file lies",
        ) from error


def _read(path: Path, _: tuple[int, ...]) -> Mapping[str, _Line]:
    text = read_text(path)
    parse = line_parser(text, finite=False)  # `checked_points` names the image
    found: dict[str, _Line] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        image = _image(number, line, path, parse)
        if image in found:
            raise KDError(
                "annotation-twice",
                f"lines {found[image].number} and {number} both annotate {image}",
                where=f"{path}:{number}",
                fix="keep one of the two lines",
            )
        found[image] = _Line(number, line)
    return found


_held = lru_cache(maxsize=1)(_read)


def _image(number: int, line: str, path: Path, parse: Callable[[str], Any]) -> str:
    """Which image a line annotates."""
    try:
        value = parse(line)
        image, points = value["image"], value["points"]
        if not isinstance(image, str) or not image or not isinstance(points, list):
            raise TypeError("image is a string and points a list")
    except (ValueError, KeyError, TypeError) as error:
        raise KDError(
            "annotations-syntax",
            f"line {number} is not an annotation: {error!r}",
            where=f"{path}:{number}",
            fix=FIX,
        ) from error
    return image


FORMAT = register("formats", "points-jsonl", __name__)(Files(entries, in_one_file=True))
