"""Format `csv`: the file that `data.annotations` names, with a line `split,image,x,y` a head."""

import csv

from kdcompile.core.errors import KDError
from kdcompile.data.entry import Entry, inside, require_image
from kdcompile.data.formats import Files


def entries(data):
    """The images of each split, in the order of their first line."""
    path = data.root / data.annotations
    if not path.is_file():
        raise KDError("csv-missing", f"there is no {path.name}", str(path), "write it there")
    points = {split: {} for split in ("train", "val", "test")}
    with path.open(newline="", encoding="utf-8") as lines:
        for split, image, x, y in csv.reader(lines):
            points[split].setdefault(image, []).append([float(x), float(y)])
    return {
        split: [
            Entry(image, require_image(inside(data.root, image), split), heads, path)
            for image, heads in images.items()
        ]
        for split, images in points.items()
    }


FORMAT = Files(entries, defaults={"annotations": "heads.csv"}, in_one_file=True)
