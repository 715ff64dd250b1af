"""Format `npz`: numpy archives of images and labels.

    FILE.npz[:PART][@SEED][[START:STOP]]       such as  cifar10.npz:train@0[:8000]

FILE lies under the root. PART names the arrays, as in `x_train` and `y_train`; without it they are
`x` and `y`. An archive holds, for each part,

    x     uint8 [N, H, W, C] or [N, H, W]; or instead of it, for encoded images,
    jpeg, offsets     uint8 [bytes], and [N + 1] where each image begins and the last one ends
    y     [N], a class's index or a value; photos that are to be labelled need none

and, once, `classes`, the names of the classes. The images come in the order of the archive, or with
@SEED shuffled so that every class is spread evenly over the whole part. Of that, START:STOP takes
a piece: `train@0[:8000]` and `train@0[8000:]` share no image and have each class in its proportion.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.arrays import TooLargeError, open_arrays
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.plugins import register
from kdcompile.data.entry import inside
from kdcompile.data.formats import Archive
from kdcompile.data.photo import Photo

PATTERN = re.compile(
    r"(?P<file>[^:@\[\]]+\.npz)(:(?P<part>\w+))?(@(?P<seed>\d+))?"
    r"(\[(?P<start>\d*):(?P<stop>\d*)\])?"
)


@dataclass(frozen=True)
class Selection:
    """A split's archive, and which of its images belong to the split, in which order."""

    file: str
    part: str | None
    seed: int | None
    start: int
    stop: int | None

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """The selection that a spec names.

        Raises:
            KDError: `npz-selection`.
        """
        match = PATTERN.fullmatch(text)
        if match is None:
            raise KDError(
                "npz-selection",
                f"{text!r} is not FILE.npz[:PART][@SEED][[START:STOP]]",
                where="[data] train, val, test",
                fix='such as train = "data.npz:train@0[:8000]", val = "data.npz:train@0[8000:]"',
            )
        seed, start, stop = match["seed"], match["start"], match["stop"]
        return cls(
            match["file"],
            match["part"],
            int(seed) if seed is not None else None,
            int(start or 0),
            int(stop) if stop else None,
        )

    def indices(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Places in the archive, in the order of the split.

        With a seed: shuffled, then by the share of its own class that lies before each image, so
        that any piece has every class in its proportion.
        """
        order = np.arange(len(labels))
        if self.seed is not None:
            order = np.random.default_rng(self.seed).permutation(len(labels))
            share = np.zeros(len(labels))
            for value in np.unique(labels):
                places = np.flatnonzero(labels[order] == value)
                share[places] = (np.arange(len(places)) + 0.5) / len(places)
            order = order[np.argsort(share, kind="stable")]
        return order[self.start : self.stop]


def archive_path(root: Path, split: str) -> Path:
    """The archive of a split.

    Raises:
        KDError: `npz-selection`, `path-outside` or `archive-missing`.
    """
    path = inside(root, Selection.parse(split).file)
    if not isfile(path):
        raise KDError(
            "archive-missing",
            f"there is no {path.name}",
            where=str(path),
            fix="put it there, or pass its folder with --set data.root=PATH",
        )
    return path


def photos(
    root: Path, split: str, labelled: bool = True
) -> tuple[list[Photo], tuple[str, ...] | None]:
    """The images of a split with their labels, and the names of the classes if there are any.

    Where they shall not be `labelled`, the archive's labels only order them, if it has any.

    Raises:
        KDError: `npz-selection`, `path-outside`, `archive-missing`, `archive-unreadable`,
            `archive-huge`, `archive-array` or `archive-invalid`.
    """
    path, chosen = archive_path(root, split), Selection.parse(split)
    with archive_of(path) as archive:
        arrays = _Arrays(archive, chosen.part, path)
        labels, names = arrays.labels(labelled), arrays.classes()
        made = arrays.images(chosen.indices(labels), labels)
    return made if labelled else [replace(photo, label=None) for photo in made], names


@contextmanager
def archive_of(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays of a user's archive, of no more than the machine's memory once unpacked.

    Raises:
        KDError: `archive-huge`, as a few kB of zeros can be; `archive-unreadable`.
    """
    memory = memory_bytes()
    try:
        with open_arrays(path, memory) as arrays:
            yield arrays
    except KDError:
        raise
    except TooLargeError as error:
        raise KDError(
            "archive-huge",
            f"its arrays are {error.size / 1e9:.3g} GB, and this machine has {memory / 1e9:.3g} GB",
            where=str(path),
            fix="write a smaller archive; images as numpy.uint8, or JPEG bytes in 'jpeg'",
        ) from error
    except (OSError, ValueError, MemoryError) as error:
        raise KDError(
            "archive-unreadable",
            f"the archive cannot be read safely: {error}",
            where=str(path),
            fix="write it with numpy.savez, without arrays of Python objects",
        ) from error


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Arrays:
    """The checked arrays of one part."""

    def __init__(self, archive: Mapping[str, NDArray[Any]], part: str | None, path: Path) -> None:
        self._archive, self._path = archive, path
        self._part, self._suffix = part or "all", f"_{part}" if part else ""

    def _has(self, name: str) -> bool:
        return name + self._suffix in self._archive

    def _get(self, name: str) -> NDArray[Any]:
        full = name + self._suffix
        if full not in self._archive:
            known = sorted(self._archive)
            raise KDError(
                "archive-array",
                f"the archive has no array {full!r}{nearest(full, known)}",
                where=str(self._path),
                fix=f"it has {', '.join(known)}; name the part, such as file.npz:train",
            )
        return self._archive[full]

    def labels(self, needed: bool) -> NDArray[Any]:
        if not needed and not self._has("y"):
            encoded = self._has("jpeg")
            return np.zeros(len(self._get("offsets")) - 1 if encoded else len(self._get("x")))
        labels = self._get("y")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
            raise self._invalid("y", f"{labels.dtype} {list(labels.shape)}", "[N] finite numbers")
        return labels

    def classes(self) -> tuple[str, ...] | None:
        if "classes" not in self._archive:
            return None
        return tuple(str(name) for name in self._archive["classes"].tolist())

    def images(self, indices: NDArray[np.int64], labels: NDArray[Any]) -> list[Photo]:
        encoded = self._has("jpeg")
        cut = self._encoded(len(labels)) if encoded else self._pixels(len(labels))
        return [
            Photo(
                f"{self._part}-{index:05d}",
                label=float(labels[index]),
                encoded=cut[index].tobytes() if encoded else None,
                array=None if encoded else cut[index],
            )
            for index in indices
        ]

    def _pixels(self, count: int) -> NDArray[np.uint8]:
        images = self._get("x")
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != count:
            found = f"{images.dtype} {list(images.shape)}"
            raise self._invalid("x", found, f"uint8 [{count}, H, W] or [{count}, H, W, C]")
        return images if images.ndim == 4 else images[..., None]

    def _encoded(self, count: int) -> list[NDArray[np.uint8]]:
        stream, offsets = self._get("jpeg"), self._get("offsets")
        if stream.dtype != np.uint8 or stream.ndim != 1:
            raise self._invalid("jpeg", f"{stream.dtype} {list(stream.shape)}", "uint8 [bytes]")
        whole = offsets.dtype.kind in "iu" and offsets.shape == (count + 1,)
        if not whole or offsets[0] < 0 or offsets[-1] > len(stream) or (np.diff(offsets) < 1).any():
            found = f"{offsets.dtype} {list(offsets.shape)}"
            raise self._invalid("offsets", found, f"[{count + 1}] rising places in jpeg")
        return [stream[a:b] for a, b in pairwise(offsets)]

    def _invalid(self, name: str, found: str, wanted: str) -> KDError:
        return KDError(
            "archive-invalid",
            f"{name}{self._suffix} is {found}, not {wanted}",
            where=str(self._path),
            fix="write the arrays as the format's description says",
        )


FORMAT = register("formats", "npz", __name__)(Archive(archive_path, photos))
