"""Format `points-jsonl`: one JSON object a line with an image path and its points.

    {"image": "images/a.jpg", "points": [[x, y], ...]}

Split lists name images by that path or by file name alone.
"""

import json
from typing import Any

from kdcompile.data.entry import Entry, read_list, require_image
from kdcompile.errors import KDError, nearest
from kdcompile.spec import Data


def entries(data: Data) -> dict[str, list[Entry]]:
    """The entries of each split, in the order of its list.

    Raises:
        KDError: `annotations-missing`, `annotations-syntax`, `annotation-missing`, and those of
            the split lists.
    """
    path = data.root / data.annotations
    records = _records(data)
    result: dict[str, list[Entry]] = {}
    for split in ("train", "val", "test"):
        listed = read_list(data.root / getattr(data, split))
        for name in listed:
            if name not in records:
                raise KDError(
                    "annotation-missing",
                    f"the {split} split names {name!r}, which has no annotation"
                    + nearest(name, records),
                    where=str(path),
                    fix="annotate the image, or take its line out of the split list",
                )
        result[split] = [
            Entry(
                name,
                require_image(data.root / records[name]["image"], split),
                records[name]["points"],
                path,
            )
            for name in listed
        ]
    return result


def _records(data: Data) -> dict[str, dict[str, Any]]:
    path = data.root / data.annotations
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KDError(
            "annotations-missing",
            f"the annotations cannot be read: {error}",
            where=str(path),
            fix="set data.root and data.annotations to where the file lies",
        ) from error
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            image = record["image"]
            if not isinstance(image, str) or not isinstance(record["points"], list):
                raise TypeError("image is a string and points a list")
        except (ValueError, KeyError, TypeError) as error:
            raise KDError(
                "annotations-syntax",
                f"line {number} is not an annotation: {error!r}",
                where=f"{path}:{number}",
                fix='write {"image": "images/a.jpg", "points": [[x, y], ...]}',
            ) from error
        records[image] = record
        records.setdefault(image.rsplit("/", 1)[-1], record)
    return records
