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
from kdcompile.data.task import Task
from kdcompile.errors import KDError
from kdcompile.gates.context import Parity

Floats = NDArray[np.float64]
Output = NDArray[np.float32]

LOG_SECONDS = 10.0
log = logging.getLogger("kdcompile")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions by network, float64 [N] each, and the agreement of two of the networks.

    `difficulty`, float64 [N]: how far the second of the two is from the truth on each photo.
    """

    predicted: Mapping[str, Floats]
    difficulty: Floats
    parity: Parity


def evaluate(
    runners: Mapping[str, Runner],
    compared: tuple[str, str],
    photos: Sequence[Photo],
    preprocess: Preprocess,
    task: Task,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Run every network over every photo; each photo is read once.

    Args:
        runners: float32 [1, C, h, w] to the output, float32 [1, ...], by name.
        compared: names of the trained network and of the deployed one.
        photos: at least one.
        preprocess: pixels to input.
        task: what the outputs mean.
        classes: the names that the data has for them.

    Raises:
        KDError: `output-nonfinite`, a network gave NaN or infinity; `labels-invalid`.
    """
    predicted: dict[str, list[float]] = {name: [] for name in runners}
    difficulty: list[float] = []
    signal = noise = worst = 0.0
    told = time.monotonic()
    for index, photo in enumerate(photos, 1):
        image = preprocess(photo.pixels(preprocess.channels))
        outputs = {name: _finite(runner(image), name, photo) for name, runner in runners.items()}
        for name, output in outputs.items():
            predicted[name].append(float(task.predictions(output)[0]))
        pair = outputs[compared[0]], outputs[compared[1]]
        difficulty.append(task.difficulty(pair[1], _truth(task, photo, pair[1], classes)))
        found = powers(*pair)
        signal, noise = signal + found[0], noise + found[1]
        worst = max(worst, relative_error(*pair))
        if time.monotonic() - told >= LOG_SECONDS:
            told = time.monotonic()
            log.info("verify: %d of %d test photos", index, len(photos))
    mode = f"{compared[1]} against {compared[0]} on test photos"
    agreement = Parity(decibels(signal, noise), worst, len(photos), mode)
    return Evaluation(
        {name: np.array(values) for name, values in predicted.items()},
        np.array(difficulty),
        agreement,
    )


def _truth(task: Task, photo: Photo, output: Output, classes: Sequence[str] | None) -> float:
    true = task.truth(photo)
    problem = task.check_labels([true], output.shape[1], classes)
    if problem is not None:
        raise KDError("labels-invalid", problem, photo.name, "correct the label of the test photo")
    return true


def _finite(output: Output, name: str, photo: Photo) -> Output:
    if not np.isfinite(output).all():
        raise KDError(
            "output-nonfinite",
            f"the {name} gave NaN or infinity",
            where=photo.name,
            fix="check its weights; in fp16, a value over 65504 overflows",
        )
    return output


def pick_examples(difficulty: Floats) -> dict[str, int]:
    """The photos with the smallest, the median and the largest difficulty, by index."""
    order = np.argsort(difficulty, kind="stable")
    return {
        "best": int(order[0]),
        "median": int(order[len(order) // 2]),
        "worst": int(order[-1]),
    }


def example_arrays(
    photo: Photo, preprocess: Preprocess, networks: Mapping[str, Runner]
) -> dict[str, NDArray[np.uint8] | Output]:
    """What the report draws of a photo.

    Args:
        photo: the photo.
        preprocess: pixels to input.
        networks: those whose densities are drawn, by name; none for outputs that are no maps.

    Returns:
        `pixels`, uint8 [H, W, C]: the photo as the networks saw it, scaled and padded; and by the
        name of each network, float32 [h, w]: its density over exactly that area.
    """
    image = preprocess(photo.pixels(preprocess.channels))
    std, mean = np.array(preprocess.std, np.float32), np.array(preprocess.mean, np.float32)
    colour = image[0].transpose(1, 2, 0) * std + mean
    pixels = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
    return {
        "pixels": pixels,
        **{name: run(image)[0, 0].astype(np.float32) for name, run in networks.items()},
    }
