"""Format `masks`: a photo and an index PNG of the same name for each image.

    images/a.jpg      the photo
    labels/a.png      its mask: the index of a class in each pixel, `data.ignore_index` where none

A split is a list of such names, with or without an ending, one a line; or a folder: `train` is then
`images/train` with `labels/train`, or `train/images` with `train/labels`. `data.classes` names the
classes in the order of their indices.
"""

from pathlib import Path

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.data.entry import SUFFIXES, Entry, inside, read_list, require_image
from kdcompile.data.formats import Files

IMAGES, LABELS = "images", "labels"
SHAPE = "put the photos into images/ and the masks, PNGs of the same names, into labels/"


def entries(data: Data) -> dict[str, list[Entry]]:
    """The images of each split, in the order of the list or by name.

    Raises:
        KDError: `split-missing`, `image-missing`, `mask-missing` or `path-outside`.
    """
    known: dict[Path, dict[str, Path]] = {}
    return {split: _split(data, split, known) for split in ("train", "val", "test")}


def _split(data: Data, split: str, known: dict[Path, dict[str, Path]]) -> list[Entry]:
    name = getattr(data, split)
    for images, labels in (
        (inside(data.root, f"{IMAGES}/{name}"), inside(data.root, f"{LABELS}/{name}")),
        (inside(data.root, f"{name}/{IMAGES}"), inside(data.root, f"{name}/{LABELS}")),
    ):
        if images.is_dir():
            return [_entry(data, image, labels, image.stem) for image in _photos(images).values()]
    found = []
    for line in read_list(inside(data.root, name)):
        place = inside(data.root / IMAGES, line)
        stems = known.setdefault(place.parent, {})
        if not stems and place.parent.is_dir():
            stems.update(_photos(place.parent))
        stem = place.stem if place.suffix.lower() in SUFFIXES else place.name
        image = stems.get(stem, place) if stem != place.stem or not place.is_file() else place
        labels = (data.root / LABELS / line).parent
        found.append(_entry(data, require_image(image, split), labels, stem))
    return found


def _photos(folder: Path) -> dict[str, Path]:
    """The photos of a folder by their names without ending, sorted."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return {path.stem: path for path in found}


def _entry(data: Data, image: Path, labels: Path, stem: str) -> Entry:
    mask = labels / f"{stem}.png"
    if not mask.is_file():
        raise KDError(
            "mask-missing",
            f"{image.name} has no mask {mask.name}",
            where=str(mask),
            fix=f"{SHAPE}, or take the image out of its split",
        )
    name = image.relative_to(data.root).as_posix()
    return Entry(name, image, None, mask, mask=mask, ignored=data.ignore_index)


FORMAT = register("formats", "masks", __name__)(Files(entries))
