"""Format `shanghaitech-mat`: the folders as published, one .mat of head points an image.

    part_A/train_data/images/IMG_1.jpg
    part_A/train_data/ground-truth/GT_IMG_1.mat     image_info{1,1}.location, [P, 2]

A split is such a folder (`train = "train_data"`) or a list of image paths relative to the root;
images that `val` lists by path are taken out of a training folder.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.core.readers import read_bounded
from kdcompile.data.entry import SUFFIXES, Entry, inside, read_list, require_image
from kdcompile.data.formats import Files
from kdcompile.data.mat5 import MOST, read_mat

TRUTH_FOLDERS = ("ground-truth", "ground_truth")


def entries(data: Data) -> dict[str, list[Entry]]:
    """The entries of each split, by image number.

    Raises:
        KDError: `split-missing`, `image-missing`, `path-outside` or `annotation-missing`.
    """
    images = {split: _images(data, split) for split in ("train", "val", "test")}
    if (data.root / data.train).is_dir():
        held_out = set(images["val"])
        images["train"] = [path for path in images["train"] if path not in held_out]
    return {split: [_entry(path, data.root) for path in paths] for split, paths in images.items()}


def read_points(path: Path) -> NDArray[np.float64]:
    """The head points of a ground-truth file, float64 [P, 2] as published.

    Raises:
        KDError: `annotation-mat`.
    """
    try:
        (cell,) = read_mat(read_bounded(path, MOST))["image_info"]
        location = np.asarray(cell[0]["location"], np.float64)
        return location.reshape(-1, 2) if location.size == 0 else location
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise KDError(
            "annotation-mat",
            f"not a ShanghaiTech ground truth: {error!r}",
            where=str(path),
            fix="use the .mat files as published (image_info{1,1}.location)",
        ) from error


def _images(data: Data, split: str) -> list[Path]:
    given = inside(data.root, getattr(data, split))
    if given.is_dir():
        found = (given / "images").glob("*")
        photos = (path for path in found if path.suffix.lower() in SUFFIXES)
        return sorted(photos, key=lambda p: (len(p.name), p.name))
    return [require_image(inside(data.root, line), split) for line in read_list(given)]


def _entry(image: Path, root: Path) -> Entry:
    for folder in TRUTH_FOLDERS:
        truth = image.parent.parent / folder / f"GT_{image.stem}.mat"
        if truth.is_file():
            return Entry(image.relative_to(root).as_posix(), image, None, truth)
    raise KDError(
        "annotation-missing",
        f"{image.name} has no ground truth",
        where=str(image.parent.parent / TRUTH_FOLDERS[0] / f"GT_{image.stem}.mat"),
        fix="put the .mat file there, as in the published archive",
    )


FORMAT = register("formats", "shanghaitech-mat", __name__)(Files(entries))
