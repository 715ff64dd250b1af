"""The result of recognising a folder of data, and the common parts of data factories for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcompile.data.entry import SUFFIXES
from kdcompile.data.splits import SPLITS

Kind = Literal["counting", "classification", "regression", "segmentation", "detection"]
FACTORY = "photos.py"
ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
HEAD = '''"""The images of a folder: a data factory, see docs/data.md of kdcompile."""

import csv
import json
from pathlib import Path

import numpy as np

from kdcompile.data.photo import Photo

IMAGES = {suffixes}


def photos(root: Path, split: str) -> list[Photo]:
    """Every tenth image is one to validate on, every tenth one to test on."""
    places = {{"val": [4], "test": [9]}}.get(split, [0, 1, 2, 3, 5, 6, 7, 8])
    return [photo for n, photo in enumerate(every(root)) if n % 10 in places]


'''


@dataclass(frozen=True)
class Recognised:
    """What a folder holds.

    Args:
        fields: of `[data]`, without `root`.
        kind: of the task that the annotations are for; None where the format does not tell.
        factory: source of a data factory, where no format reads the folder.
        classes: names of the classes in their order, where they are known.
        also: what else the annotations may be taken for, such as boxes for the points to count.
    """

    fields: dict[str, Any]
    kind: Kind | None
    factory: str | None = None
    classes: Sequence[str] = field(default=())
    also: "Recognised | None" = None


def own_factory(*files: str) -> dict[str, Any]:
    """The fields of `[data]` for a factory that reads files of these patterns."""
    names = {split: split for split in SPLITS}
    return {"format": f"{FACTORY}:photos", "files": list(dict.fromkeys(files)), **names}


def factory_head() -> str:
    """The beginning of its source, which splits the images."""
    return HEAD.format(suffixes=sorted(SUFFIXES))
