"""Format `points-jsonl`: one JSON object a line with an image path and its points.

    {"image": "images/a.jpg", "points": [[x, y], ...]}

Split lists name images by that path or by file name alone, where only one image has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.plugins import register
from kdcompile.core.readers import parse_json, read_text
from kdcompile.data.entry import Entry, read_list, require_image
from kdcompile.data.formats import Files

FIX = 'write {"image": "images/a.jpg", "points": [[x, y], ...]}'


@dataclass(frozen=True)
class _Record:
    """A line of the annotations."""

    number: int
    image: str
    points: list[Any]


def entries(data: Data) -> dict[str, list[Entry]]:
    """The entries of each split, in the order of its list.

    Raises:
        KDError: `annotations-missing`, `annotations-syntax`, `annotation-twice`,
            `annotation-ambiguous`, `annotation-missing`, and those of the split lists.
    """
    path = data.root / data.annotations
    records = _records(path)
    named: dict[str, list[_Record]] = {}
    for record in records.values():
        named.setdefault(record.image.rsplit("/", 1)[-1], []).append(record)
    return {
        split: [
            _entry(name, records, named, data.root, path, split)
            for name in read_list(data.root / getattr(data, split))
        ]
        for split in ("train", "val", "test")
    }


def _entry(
    name: str,
    records: Mapping[str, _Record],
    named: Mapping[str, list[_Record]],
    root: Path,
    path: Path,
    split: str,
) -> Entry:
    """The entry of a line of a split list."""
    found = [records[name]] if name in records else named.get(name, [])
    if len(found) > 1:
        images = " and ".join(record.image for record in found[:2])
        raise KDError(
            "annotation-ambiguous",
            f"the {split} split names {name!r}, which may be {images}",
            where=f"[data] {split}",
            fix="name it by its path there, as the annotations do",
        )
    if not found:
        raise KDError(
            "annotation-missing",
            f"the {split} split names {name!r}, which has no annotation"
            + nearest(name, [*records, *named]),
            where=str(path),
            fix="annotate the image, or take its line out of the split list",
        )
    image = require_image(root / found[0].image, split)
    return Entry(name, image, found[0].points, path)


def _records(path: Path) -> dict[str, _Record]:
    """The lines by image."""
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise KDError(
            "annotations-missing",
            f"the annotations cannot be read: {error}",
            where=str(path),
            fix="set data.root and data.annotations to where the file lies",
        ) from error
    records: dict[str, _Record] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _record(number, line, path)
        known = records.setdefault(record.image, record)
        if known is not record:
            raise KDError(
                "annotation-twice",
                f"lines {known.number} and {number} both annotate {record.image}",
                where=f"{path}:{number}",
                fix="keep one of the two lines",
            )
    return records


def _record(number: int, line: str, path: Path) -> _Record:
    try:
        value = parse_json(line, finite=False)  # `checked_points` names the image
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
    return _Record(number, image, points)


FORMAT = register("formats", "points-jsonl", __name__)(Files(entries, in_one_file=True))
