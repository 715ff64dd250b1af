"""Predictions of a bundle's network for image files without annotations."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.bundle.box_figures import BOX, POINT, boxes_png, points_png
from kdcompile.bundle.figures import overlay_png
from kdcompile.bundle.mask_figures import index_png, mask_png
from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.data import tiles
from kdcompile.data.photo import read_pixels
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.tasks.task import Task

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Row = dict[str, Any]
PAIR = 2  # axes of a list of boxes or points
OF_A_PHOTO = ("image-", "sample-", "output-nonfinite")  # what ends one photo and not the others
OTHER_IMAGE = "give an image that can be decoded, or leave this one out"
FIXES = {
    "image-unreadable": OTHER_IMAGE,
    "image-tiny": OTHER_IMAGE,
    "image-huge": "scale it down, or leave it out",
}


class BundleRun:
    """A bundle's network on photos, one after the other.

    Args:
        task: of the bundle.
        classes: their names, where they have any.
        preprocess: of the bundle.
        runner: float32 [1, C, h, w] to the output.
        precision: of the network, for the overlays' titles.
        photos: image files.
        out: the folder for overlays of a density or of classes; none are drawn if absent.
        tiles: of the bundle (`product.tiling_of`), where photos that are larger than the network's
            input are run in tiles and not scaled down.
    """

    def __init__(
        self,
        task: Task,
        classes: Sequence[str] | None,
        preprocess: Preprocess,
        runner: Callable[[Floats], Floats],
        precision: str,
        photos: Sequence[Path],
        out: Path | None = None,
        tiles: dict[str, Any] | None = None,
    ) -> None:
        self._task, self._classes, self._precision = task, classes, precision
        self.preprocess, self.runner, self.out = preprocess, runner, out
        self.photos, self.tiles = photos, tiles
        self._inputs = {_place(photo) for photo in photos}
        self._same = {mark for photo in photos for mark in _marks(photo)}
        self._taken: set[str] = set()

    def __iter__(self) -> Iterator[tuple[Path, Row | KDError]]:
        """Each photo with its row, or with the error that it ends with.

        A row is {"photo", **words of the task, "overlay", "tiles"}; `overlay` is a path or None, of
        class maps there is `mask` too; `tiles` how many there were, None where it was run as a
        whole.

        Raises:
            KDError: no photo can be run: `output-shape`, `input-refused`, `output-unwritable`,
                or what the engine's place says.
        """
        for photo in self.photos:
            try:
                found: Row | KDError = self.row(photo)
            except KDError as error:
                if not error.code.startswith(OF_A_PHOTO):
                    raise
                fix = FIXES.get(error.code, error.fix)
                found = KDError(error.code, error.message, str(photo), fix)
            yield photo, found

    def row(self, photo: Path) -> Row:
        """What the network says of a photo.

        Raises:
            KDError: it cannot be read, or the output is not one of the task.
        """
        pixels = read_pixels(photo, self.preprocess.channels)
        whole, frame, count = self._run(pixels)
        self.check(whole)
        output = self._task.answer(whole, frame)
        words = self._task.describe(output, self._classes)
        paths: dict[str, Any] = {"overlay": None}
        if self.out is not None:
            draw = self._picture_of(output, words)
            if draw is not None:
                paths = draw(self.out, photo, pixels, output, words, frame)
        return {"photo": str(photo), **words, **paths, "tiles": count}

    def _picture_of(self, output: NDArray[Any], words: Row) -> Callable[..., dict[str, str]] | None:
        """What draws an answer, by its form; None of one that no picture is known of."""
        if output.dtype == np.uint8:
            return self._draw_classes
        if output.ndim == PAIR and output.shape[1] in (BOX, POINT):
            return self._draw_things
        return self._draw_density if "count" in words else None

    def _draw_density(
        self, out: Path, photo: Path, pixels: Pixels, output: Any, words: Row, frame: Frame
    ) -> dict[str, str]:
        """`overlay`: the density over the photo."""
        grow = [have / seen for have, seen in zip(frame.photo, frame.seen, strict=True)]
        extent = frame.plane[0] * grow[0], frame.plane[1] * grow[1]
        title = f"{photo.name}: {words['count']:.1f} ({self._precision})"
        drawn = overlay_png(pixels, output[0, 0], title, extent)
        return {"overlay": str(self.write(out, photo.stem, "_density.png", drawn))}

    def _draw_classes(
        self, out: Path, photo: Path, pixels: Pixels, output: Any, words: Row, frame: Frame
    ) -> dict[str, str]:
        """`overlay`: the photo under the colours of its classes; `mask`: their index PNG."""
        title = f"{photo.name} ({self._precision})"
        drawn = mask_png(pixels, output, title, self._classes)
        return {
            "overlay": str(self.write(out, photo.stem, "_classes.png", drawn)),
            "mask": str(self.write(out, photo.stem, "_mask.png", index_png(output))),
        }

    def _draw_things(
        self, out: Path, photo: Path, pixels: Pixels, output: Any, words: Row, frame: Frame
    ) -> dict[str, str]:
        """`overlay`: the photo with its boxes, or points."""
        title = f"{photo.name}: {len(output)} ({self._precision})"
        draw, ending = (boxes_png, "boxes") if output.shape[1] == BOX else (points_png, "points")
        drawn = draw(pixels, output, title, self._classes)
        return {"overlay": str(self.write(out, photo.stem, f"_{ending}.png", drawn))}

    def _run(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Frame, int | None]:
        """The output, what it is of, and the number of tiles."""
        size, most = pixels.shape[:2], self.preprocess.max_hw
        if self.tiles is None or (size[0] <= most[0] and size[1] <= most[1]):
            return self.runner(self.preprocess(pixels)), self.preprocess.frame(*size), None
        unscaled = replace(self.preprocess, min_hw=(1, 1), max_hw=size)
        try:
            found, plane, count = tiles.run(self.runner, unscaled(pixels), most, self.tiles)
        except tiles.TilesError as error:
            raise KDError(
                "tiles-refused", str(error), where="the bundle's network",
                fix="leave --tiles out: larger images are then scaled down, as for the gates",
            ) from error  # fmt: skip
        return found, Frame(size, size, plane), count

    def check(self, output: Floats) -> None:
        """Refuse an output that is not one of the task.

        Raises:
            KDError: `output-shape` or `output-nonfinite`.
        """
        problem = self._task.check_output(output.shape)
        if problem is not None:
            raise KDError(
                "output-shape",
                f"the network gives {list(output.shape)}: {problem}",
                where="the bundle's network",
                fix="build the bundle again: its network is not one of its task",
            )
        if not np.isfinite(output).all():
            raise KDError(
                "output-nonfinite",
                "the network gives NaN or infinity for this image",
                fix="check the image; if others fail too, build the bundle again in fp32: "
                "--set quantize.precision=fp32",
            )

    def write(self, folder: Path, stem: str, ending: str, content: bytes) -> Path:
        """The path of what is written; it replaces an earlier run's, but no input and no link."""
        path = folder / self._free_name(folder, stem, ending)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise KDError(
                "output-unwritable",
                f"the output cannot be written: {error.strerror}",
                where=str(path),
                fix="name a writable folder with -o",
            ) from error
        return path

    def _free_name(self, folder: Path, stem: str, ending: str) -> str:
        """A name that no other photo of this run has, as its overlay or as itself."""
        name, number = f"{stem}{ending}", 2
        while (
            name in self._taken
            or (folder / name).is_symlink()
            or _place(folder / name) in self._inputs
            or _marks(folder / name) & self._same
        ):
            name, number = f"{stem}-{number}{ending}", number + 1
        self._taken.add(name)
        return name


def _place(path: Path) -> str:
    """Where a name lies, whether it is a link or not, or absent."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _marks(path: Path) -> set[tuple[int, int]]:
    """Device and inode of what a name is, and of what it leads to."""
    found = set()
    for look in (os.stat, os.lstat):
        try:
            info = look(path)
        except OSError:
            continue
        found.add((info.st_dev, info.st_ino))
    return found
