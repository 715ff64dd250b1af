"""Recognise what a folder of data holds: its format, its splits, and what is annotated.

What no format reads as it lies there, such as folders of classes that nobody has split, a COCO file
or a table of labels, gets a data factory: a small file beside the spec, which is the user's to
change.
"""

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from kdcompile.core.errors import KDError
from kdcompile.core.escape import python
from kdcompile.core.readers import read_text
from kdcompile.data.entry import SUFFIXES
from kdcompile.data.formats.npz import archive_of
from kdcompile.data.recognise_boxes import coco, yolo
from kdcompile.data.recognised import ALIASES, Kind, Recognised, factory_head, own_factory
from kdcompile.data.splits import SPLITS

SHARE = 10  # every tenth image is one to validate on
READERS = {
    "folders": '''def every(root: Path) -> list[Photo]:
    """An image's class is the number of its folder."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    return [
        Photo(path.relative_to(root).as_posix(), label=float(label), path=path)
        for label, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGES
    ]
''',
    "table": '''def every(root: Path) -> list[Photo]:
    """Lines of an image and its label; names of classes are numbered in their order."""
    with (root / {name}).open(newline="", encoding="utf-8") as stream:
        rows = [(row[0].strip(), row[1].strip()) for row in csv.reader(stream) if len(row) > 1]
    rows = [row for row in rows if Path(row[0]).suffix.lower() in IMAGES]
    classes = {classes}
    labels = [classes.index(label) if classes else float(label) for _, label in rows]
    return [
        Photo(name, label=float(label), path=root / name)
        for (name, _), label in zip(rows, labels)
    ]
''',
}


def recognise(root: Path) -> Recognised:
    """What a folder holds.

    Raises:
        KDError: `init-data`, it holds nothing that is known.
    """
    if root.is_dir():
        for look in (_points, _masks, _archive, coco, yolo, _split_folders, _table, _folders):
            found = look(root)
            if found is not None:
                return found
    what = "holds no annotated images that are known" if root.is_dir() else "is no folder"
    raise KDError(
        "init-data",
        f"{root.name or root} {what}",
        where=f"--data {root}",
        fix="name a folder with a folder of images for each class (in train, val and test, or not "
        "split), with a table of image,label lines, an .npz archive, annotations.jsonl, images/ "
        "and labels/ of masks, COCO files, or data.yaml of the YOLO layout; else write a data "
        "factory, docs/data.md",
    )


def _points(root: Path) -> Recognised | None:
    lists = [root / f"{split}.txt" for split in SPLITS]
    if not (root / "annotations.jsonl").is_file() or not all(path.is_file() for path in lists):
        return None
    return Recognised({"format": "points-jsonl"}, "counting")


def _masks(root: Path) -> Recognised | None:
    """Photos in `images` and PNGs of the same names in `labels`, by lists or folders of splits."""
    if all((root / f"{split}.txt").is_file() for split in SPLITS):
        names = {split: f"{split}.txt" for split in SPLITS}
        pairs = [(root / "images", root / "labels")]
    else:
        outer = (root / "images").is_dir()

        def place(split: str, part: str) -> Path:
            return root / part / split if outer else root / split / part

        found = {
            s: next((a for a in ALIASES[s] if place(a, "images").is_dir()), None) for s in SPLITS
        }
        names = {split: name for split, name in found.items() if name is not None}
        if len(names) < len(SPLITS):
            return None
        pairs = [(place(name, "images"), place(name, "labels")) for name in names.values()]
    masks = [mask for _, labels in pairs for mask in sorted(labels.glob("*.png"))]
    photos = {path.stem for images, _ in pairs for path in _images(images)}
    if not masks or not photos & {mask.stem for mask in masks}:
        return None
    return Recognised({"format": "masks", **names}, "segmentation")


def _archive(root: Path) -> Recognised | None:
    """One archive with parts for the splits, or with one or two that are cut."""
    for path in sorted(root.glob("*.npz")):
        with archive_of(path) as archive:
            found = {n: archive[n] for n in archive if n == "y" or n[:2] == "y_"}
        labels = {name: len(array) if array.ndim else 0 for name, array in found.items()}
        kinds = {array.dtype.kind for array in found.values()}
        parts = {name[2:]: count for name, count in labels.items()}
        named = {s: next((a for a in ALIASES[s] if a in parts), None) for s in SPLITS}
        if not parts:
            continue
        whole = named["train"] if named["train"] is not None else next(iter(parts))
        cut = f"{path.name}:{whole}@0" if whole else f"{path.name}@0"
        count, fields = parts[whole], {"format": "npz"}
        missing = [split for split in SPLITS[1:] if named[split] is None]
        first = count - len(missing) * (count // SHARE)
        fields["train"] = f"{cut}[:{first}]" if missing else f"{path.name}:{whole}"
        for split in SPLITS[1:]:
            if named[split] is not None:
                fields[split] = f"{path.name}:{named[split]}"
                continue
            begin = first + missing.index(split) * (count // SHARE)
            end = "" if split == missing[-1] else begin + count // SHARE
            fields[split] = f"{cut}[{begin}:{end}]"
        return Recognised(fields, "regression" if "f" in kinds else "classification")
    return None


def _split_folders(root: Path) -> Recognised | None:
    """Folders of the three splits, each with folders of classes or a table of values."""
    found = {s: next((a for a in ALIASES[s] if (root / a).is_dir()), None) for s in SPLITS}
    names = {split: name for split, name in found.items() if name is not None}
    if len(names) < len(SPLITS):
        return None
    is_table = (root / names["train"] / "labels.csv").is_file()
    kind: Kind = "regression" if is_table else "classification"
    classes = [] if is_table else _class_folders(root / names["train"])
    return Recognised({"format": "imagefolder", **names}, kind, classes=classes)


def _table(root: Path) -> Recognised | None:
    for path in sorted(root.glob("*.csv")):
        try:
            rows = [
                row for row in csv.reader(StringIO(read_text(path), newline="")) if len(row) > 1
            ]
        except (OSError, ValueError, csv.Error):
            continue
        rows = [row for row in rows if Path(row[0].strip()).suffix.lower() in SUFFIXES]
        if not rows:
            continue
        labels = {row[1].strip() for row in rows}
        is_value = all(map(_is_number, labels))
        classes = [] if is_value else sorted(labels)
        listed = "[" + ", ".join(map(python, classes)) + "]"
        text = READERS["table"].format(name=python(path.name), classes=listed)
        kind: Kind = "regression" if is_value else "classification"
        return Recognised(own_factory("*.csv", "**/*"), kind, factory_head() + text, classes)
    return None


def _folders(root: Path) -> Recognised | None:
    classes = _class_folders(root)
    if len(classes) < 2:
        return None
    return Recognised(
        own_factory("**/*"), "classification", factory_head() + READERS["folders"], classes
    )


def _class_folders(root: Path) -> list[str]:
    """Names of the folders that hold images."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    return [path.name for path in folders if next(_images(path), None) is not None]


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False
