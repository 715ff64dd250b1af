"""Predictions of a bundle's network for photos that nobody has annotated."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.overlay import overlay_png
from kdcompile.errors import KDError


def covered(preprocess: Mapping[str, Any], height: int, width: int) -> tuple[float, float]:
    """The part of the plane, in the photo's pixels, that the network saw: photo and padding.

    Args:
        preprocess: `min_hw` and `max_hw` of `preprocess.json`.
        height: of the photo.
        width: of the photo.
    """
    (low_h, low_w), (high_h, high_w) = preprocess["min_hw"], preprocess["max_hw"]
    scale = min(1.0, high_h / height, high_w / width)
    seen_h, seen_w = max(1, int(height * scale)), max(1, int(width * scale))
    return max(low_h, seen_h) * height / seen_h, max(low_w, seen_w) * width / seen_w


def run_bundle(
    bundle: Bundle,
    photos: Sequence[Path],
    pixels: Iterable[NDArray[np.uint8]],
    preprocess: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    runner: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    describe: Callable[[NDArray[np.float32]], dict[str, Any]],
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Say what the network predicts for each photo, and draw it where it is a density.

    Args:
        bundle: gives the precision and the geometry of the preprocessing.
        photos: image files, for the names.
        pixels: what is in them, uint8 [H, W, C] each; a generator need hold only one.
        preprocess: uint8 [H, W, C] to float32 [1, C, h, w].
        runner: float32 [1, C, h, w] to the output.
        describe: the output to the task's words for it, such as {"count": 3.2}.
        out: the folder for overlays of a density [1, 1, h', w']; none are drawn if absent.

    Returns:
        For each photo {"photo", **words, "overlay"}; `overlay` is a path or None.

    Raises:
        KDError: `output-unwritable`.
    """
    results: list[dict[str, Any]] = []
    taken: set[str] = set()
    for photo, image in zip(photos, pixels, strict=True):
        output = runner(preprocess(image))
        words = describe(output)
        path = None
        if out is not None:
            extent = covered(bundle.preprocess, *image.shape[:2])
            title = f"{photo.name}: {words['count']:.1f} ({bundle.manifest['precision']})"
            drawn = overlay_png(image, output[0, 0], title, extent)
            path = _write(out, _free_name(photo.stem, taken), drawn)
        results.append({"photo": str(photo), **words, "overlay": path and str(path)})
    return results


def _free_name(stem: str, taken: set[str]) -> str:
    """A name that no other photo of this run has."""
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    return f"{name}_density.png"


def _write(folder: Path, name: str, content: bytes) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    except OSError as error:
        raise KDError(
            "output-unwritable",
            f"the overlay cannot be written: {error.strerror}",
            where=str(folder / name),
            fix="name a writable folder with -o",
        ) from error
    return folder / name
