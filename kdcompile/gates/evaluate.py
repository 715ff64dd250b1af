"""The networks of a build, run over the test photos and timed on this machine."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends.predict import Runner
from kdcompile.data.agreement import decibels, powers, relative_error
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.errors import KDError
from kdcompile.gates.context import Parity

Floats = NDArray[np.float64]
Density = NDArray[np.float32]

LOG_SECONDS = 10.0
log = logging.getLogger("kdcompile")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Counts by network, float64 [N] each, and the agreement of two of the networks."""

    counts: Mapping[str, Floats]
    parity: Parity


def evaluate(
    runners: Mapping[str, Runner],
    compared: tuple[str, str],
    photos: Sequence[Photo],
    preprocess: Preprocess,
) -> Evaluation:
    """Run every network over every photo; each photo is read once.

    Args:
        runners: float32 [1, C, h, w] to density float32 [1, 1, h', w'], by name.
        compared: names of the trained network and of the deployed one.
        photos: at least one.
        preprocess: pixels to input.

    Raises:
        KDError: `output-nonfinite`, a network gave NaN or infinity.
    """
    counts: dict[str, list[float]] = {name: [] for name in runners}
    signal = noise = worst = 0.0
    told = time.monotonic()
    for index, photo in enumerate(photos, 1):
        image = preprocess(photo.pixels(preprocess.channels))
        maps = {name: _finite(runner(image), name, photo) for name, runner in runners.items()}
        for name, density in maps.items():
            counts[name].append(float(density.sum(dtype=np.float64)))
        pair = maps[compared[0]], maps[compared[1]]
        found = powers(*pair)
        signal, noise = signal + found[0], noise + found[1]
        worst = max(worst, relative_error(*pair))
        if time.monotonic() - told >= LOG_SECONDS:
            told = time.monotonic()
            log.info("verify: %d of %d test photos", index, len(photos))
    mode = f"{compared[1]} against {compared[0]} on test photos"
    agreement = Parity(decibels(signal, noise), worst, len(photos), mode)
    return Evaluation({name: np.array(values) for name, values in counts.items()}, agreement)


def _finite(density: Density, name: str, photo: Photo) -> Density:
    if not np.isfinite(density).all():
        raise KDError(
            "output-nonfinite",
            f"the {name} gave NaN or infinity",
            where=photo.name,
            fix="check its weights; in fp16, a value over 65504 overflows",
        )
    return density


def pick_examples(errors: Floats) -> dict[str, int]:
    """The photos with the smallest, the median and the largest absolute error, by index."""
    order = np.argsort(np.abs(errors), kind="stable")
    return {
        "best": int(order[0]),
        "median": int(order[len(order) // 2]),
        "worst": int(order[-1]),
    }


def example_arrays(
    photo: Photo, preprocess: Preprocess, student: Runner, teacher: Runner
) -> dict[str, NDArray[np.uint8] | Density]:
    """What the report draws of a photo.

    Returns:
        `pixels`, uint8 [H, W, C]: the photo as the networks saw it, scaled and padded; `student`
        and `teacher`, float32 [h, w]: densities over exactly that area.
    """
    image = preprocess(photo.pixels(preprocess.channels))
    std, mean = np.array(preprocess.std, np.float32), np.array(preprocess.mean, np.float32)
    colour = image[0].transpose(1, 2, 0) * std + mean
    pixels = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
    return {
        "pixels": pixels,
        "student": student(image)[0, 0].astype(np.float32),
        "teacher": teacher(image)[0, 0].astype(np.float32),
    }
