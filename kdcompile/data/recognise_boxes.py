"""Recognise annotations of boxes: COCO files, of each split or of all images, and the YOLO layout.

Boxes are to be found, or where the network gives a density their centres to be counted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.core.escape import python
from kdcompile.core.readers import read_json
from kdcompile.data.coco_file import LARGEST
from kdcompile.data.recognised import ALIASES, Recognised, factory_head, own_factory
from kdcompile.data.splits import SPLITS
from kdcompile.data.yolo_file import read_yolo

PLACES = (
    "{}.json",
    "{}/_annotations.coco.json",
    "annotations/{}.json",
    "annotations/instances_{}.json",
    "annotations/instances_{}2017.json",
)
POINTS = '''def every(root: Path, file: str = {name}) -> list[Photo]:
    """The centres of an image's boxes are counted."""
    found = json.loads((root / file).read_text())
    points: dict = {{row["id"]: [] for row in found["images"]}}
    for row in found["annotations"]:
        x, y, width, height = row["bbox"]
        points[row["image_id"]].append([x + width / 2, y + height / 2])
    return [
        Photo(
            row["file_name"],
            np.array(points[row["id"]], np.float32).reshape(-1, 2),
            path=next(p for p in (root / {images} / row["file_name"], root / row["file_name"])
                      if p.is_file()),
        )
        for row in found["images"]
    ]
'''
BOXES = '''def every(root: Path, file: str = {name}) -> list[Photo]:
    """Boxes are x0, y0, x1, y1 and the class, numbered by ascending id; of a crowd -1 - class."""
    found = json.loads((root / file).read_text())
    kinds = {{kind: n for n, kind in enumerate(sorted(row["id"] for row in found["categories"]))}}
    boxes: dict = {{row["id"]: [] for row in found["images"]}}
    for row in found["annotations"]:
        (x, y, width, height), kind = row["bbox"], kinds[row["category_id"]]
        kind = -1 - kind if row.get("iscrowd") else kind
        boxes[row["image_id"]].append([x, y, x + width, y + height, kind])
    return [
        Photo(
            row["file_name"],
            boxes=np.array(boxes[row["id"]], np.float32).reshape(-1, 5),
            path=next(p for p in (root / {images} / row["file_name"], root / row["file_name"])
                      if p.is_file()),
        )
        for row in found["images"]
    ]
'''
OF_FILES = '''

def photos(root: Path, split: str) -> list[Photo]:
    """The images of the file that is named as the split."""
    return every(root, f"{split}.json")
'''


def coco(root: Path) -> Recognised | None:
    """COCO files of the three splits, or one of all images, which a factory splits.

    Raises:
        KDError: `init-data`, there are some of the splits.
    """
    found = {split: path for split in SPLITS if (path := _file(root, split)) is not None}
    if found and len(found) < len(SPLITS) and "train" in found:
        lacking = next(split for split in SPLITS if split not in found)
        raise KDError(
            "init-data",
            f"there is {_name(root, found['train'])} for the train split, and no COCO file for the "
            f"{lacking} split",
            where=str(root),
            fix=f"write one next to it, such as {lacking}.json; no image may be in two splits",
        )
    if len(found) == len(SPLITS):
        return _of_splits(root, found)
    path = next((path for path in sorted(root.glob("*.json")) if _content(path)), None)
    if path is None:
        return None
    content = _content(path)
    values = {"name": python(path.name), "images": python(_folder(root, path, content) or "images")}
    points = _counted(factory_head() + POINTS.format(**values))
    names = _names(content)
    if not names:
        return points
    fields = own_factory("*.json", "**/*") | {"classes": list(names)}
    return Recognised(fields, "detection", factory_head() + BOXES.format(**values), names, points)


def _of_splits(root: Path, found: Mapping[str, Path]) -> Recognised:
    """The format `coco`; also counting, where the files lie beside each other."""
    contents = {split: _content(path) for split, path in found.items()}
    points = None
    if all(path == root / f"{split}.json" for split, path in found.items()):
        images = _folder(root, found["train"], contents["train"]) or "images"
        text = factory_head() + POINTS.format(name=python("train.json"), images=python(images))
        start, end = text.index("def photos("), text.index("def every(")
        points = _counted(text[:start] + text[end:] + OF_FILES)
    names = _names(contents["train"])
    if points is not None and not names:
        return points
    fields = {"format": "coco"}
    for split, path in found.items():
        folder = _folder(root, path, contents[split])
        fields[split] = _name(root, path) + (f":{folder}" if folder else "")
    return Recognised(fields, "detection", None, names, points)


def yolo(root: Path) -> Recognised | None:
    """`data.yaml`, or the only other file of that kind, with the names of classes.

    Raises:
        KDError: those of `read_yolo`.
    """
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    path = next((one for one in files if one.stem == "data"), files[0] if len(files) == 1 else None)
    if path is None:
        return None
    file = read_yolo(path)
    keys = {s: next((a for a in ALIASES[s] if a in file.values), s) for s in SPLITS}
    fields = {"format": "yolo", "annotations": path.name, **keys}
    return Recognised(fields, "detection", classes=file.names)


def _counted(factory: str) -> Recognised:
    return Recognised(own_factory("*.json", "**/*"), "counting", factory)


def _file(root: Path, split: str) -> Path | None:
    """The COCO file of a split, by one of the usual names."""
    names = [place.format(alias) for alias in ALIASES[split] for place in PLACES]
    return next((root / name for name in names if _content(root / name)), None)


def _content(path: Path) -> Mapping[str, Any]:
    """A COCO file; nothing where it is none."""
    try:
        found = read_json(path, LARGEST, finite=False)
    except (OSError, ValueError):
        return {}
    is_coco = isinstance(found, dict) and {"images", "annotations"} <= set(found)
    return found if is_coco else {}


def _names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes by ascending id; none where the file has no categories."""
    rows = content.get("categories") or []
    return tuple(str(row["name"]) for row in sorted(rows, key=lambda row: int(row["id"])))


def _folder(root: Path, path: Path, content: Mapping[str, Any]) -> str:
    """Where the images lie, unless the format looks there anyway."""
    name = str(next((row.get("file_name", "") for row in content["images"]), ""))
    if not name or any((p / name).is_file() for p in (path.parent, root, root / "images")):
        return ""
    found = (p for p in sorted(root.rglob(Path(name).name)) if p.as_posix().endswith(f"/{name}"))
    first = next(found, None)
    if first is None:
        return ""  # which is told where the images are read
    return _name(root, first.parents[len(Path(name).parts) - 1])


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
