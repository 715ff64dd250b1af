"""Format `imagefolder`: a folder a split, with a folder a class, or a table of values.

    train/cat/a.jpg          classification: the folder's name is the class
    train/labels.csv         regression: a line an image, `a.jpg,3.5`; a first line that names
                             neither an image nor a number, `image,value`, is a heading

A split is such a folder under the root (`train`, `val` and `test` unless the spec names others) or
a list of paths relative to the root, `cat/a.jpg` a line, where the class is the folder that an
image lies in. Classes are numbered in the order of their sorted names, those of the training split;
another split may lack some of them, never have one more.
"""

import csv
from io import StringIO
from pathlib import Path

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.plugins import register
from kdcompile.core.readers import read_text
from kdcompile.data.entry import SUFFIXES, Entry, inside, read_list, require_image
from kdcompile.data.formats import Files

TABLE = "labels.csv"


def entries(data: Data) -> dict[str, list[Entry]]:
    """The entries of each split: by class and name, or in the order of the list or table.

    Raises:
        KDError: `split-missing`, `image-missing`, `split-ambiguous`, `labels-syntax`,
            `classes-missing`, `classes-differ` or `path-outside`.
    """
    found = {split: _split(data, split) for split in ("train", "val", "test")}
    _check_classes(found)
    return found


def _split(data: Data, split: str) -> list[Entry]:
    given = inside(data.root, getattr(data, split))
    if not given.exists() and not given.suffix:
        name = getattr(data, split)
        raise KDError(
            "split-missing",
            f"there is no folder {name!r} with the {split} split",
            where=f"{data.root} [data] {split}",
            fix=f"make it, with a folder for each class or a {TABLE}; or set data.{split} to the "
            "folder or the list of images that this split is",
        )
    if not given.is_dir():
        return [_listed(data.root, line, split) for line in read_list(given)]
    classes = sorted(path for path in given.iterdir() if path.is_dir() and path.name[0] != ".")
    table = given / TABLE
    if table.is_file() and classes:
        raise KDError(
            "split-ambiguous",
            f"the {split} split has folders of classes and a {TABLE}",
            where=str(given),
            fix=f"remove {TABLE} to classify, or move the images next to it to predict values",
        )
    if table.is_file():
        return _table(data.root, table, split)
    if not classes:
        raise KDError(
            "classes-missing",
            f"the {split} split has neither folders of classes nor a {TABLE}",
            where=str(given),
            fix=f"make a folder for each class, or write image,value lines into {TABLE}",
        )
    return [
        Entry(image.relative_to(data.root).as_posix(), image, None, None, folder.name)
        for folder in classes
        for image in sorted(folder.rglob("*"))
        if image.suffix.lower() in SUFFIXES and image.is_file()
    ]


def _listed(root: Path, line: str, split: str) -> Entry:
    image = require_image(inside(root, line), split)
    return Entry(line, image, None, None, image.parent.name)


def _table(root: Path, table: Path, split: str) -> list[Entry]:
    try:
        rows = list(csv.reader(StringIO(read_text(table), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise _syntax(table, 1, str(error)) from error
    found: dict[Path, Entry] = {}
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and _is_heading(row)):
            continue
        try:
            name, value = row
            label = float(value)
        except ValueError as error:
            raise _syntax(table, number, str(error)) from error
        if label != label or label in (float("inf"), -float("inf")):
            raise _syntax(table, number, f"{value} is not finite")
        image = require_image(inside(table.parent, name.strip()), split)
        if image in found:
            raise _syntax(table, number, f"{name.strip()} has a line before this one")
        found[image] = Entry(image.relative_to(root).as_posix(), image, None, table, label)
    return list(found.values())


def _is_heading(row: list[str]) -> bool:
    """Whether a first line names its columns: two words, no image and no number."""
    if len(row) != 2 or Path(row[0].strip()).suffix.lower() in SUFFIXES:
        return False
    try:
        float(row[1])
    except ValueError:
        return bool(row[1].strip())
    return False


def _syntax(table: Path, line: int, problem: str) -> KDError:
    return KDError(
        "labels-syntax",
        f"line {line} is not an image and its value: {problem}",
        where=f"{table}:{line}",
        fix="write a line an image, such as a.jpg,3.5",
    )


def _check_classes(found: dict[str, list[Entry]]) -> None:
    kinds = {split: {type(entry.label) for entry in rows} for split, rows in found.items()}
    classes = {split: {str(entry.label) for entry in rows} for split, rows in found.items()}
    for split in ("val", "test") if kinds["train"] else ():
        if kinds[split] - kinds["train"]:
            what, other = "classes", "values"
            if kinds["train"] == {str}:
                what, other = other, what
            message = f"the {split} split has {what}, the training split has {other}"
        elif kinds["train"] == {str} and classes[split] - classes["train"]:
            name = min(classes[split] - classes["train"])
            message = f"the {split} split has a class {name!r}, which the training split lacks"
            message += nearest(name, classes["train"])
        else:
            continue
        raise KDError(
            "classes-differ", message, where=f"[data] {split}", fix="label every split alike"
        )


SPLITS = {split: split for split in ("train", "val", "test")}  # folders, and no lists
FORMAT = register("formats", "imagefolder", __name__)(Files(entries, defaults=SPLITS))
