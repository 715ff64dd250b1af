"""The networks of a build, run over the test images and timed on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends.candidate_runner import Runner
from kdcompile.core.errors import KDError
from kdcompile.core.progress import counted
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.gates.context import Parity
from kdcompile.tasks.agreement import decibels, powers, relative_error
from kdcompile.tasks.task import Task

Floats = NDArray[np.float64]
Output = NDArray[np.float32]

MOST_DRAWN = 3  # of the worst images


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What every network gave, and the agreement of two of them.

    Args:
        predicted: by network, float64 [N], or [N, 1 + W] with a record of each image.
        maps: errors by the task's `map_metrics`, by network, float64 [N, M]; empty where the task
            has none.
        difficulty: how far the second of the two is from the truth on each image, float64 [N].
        parity: of the two.
    """

    predicted: Mapping[str, Floats]
    maps: Mapping[str, Floats]
    difficulty: Floats
    parity: Parity


def evaluate(
    runners: Mapping[str, Runner],
    compared: tuple[str, str],
    photos: Sequence[Photo],
    preprocess: Preprocess,
    task: Task,
    classes: Sequence[str] | None = None,
    own: Mapping[str, Preprocess] | None = None,
) -> Evaluation:
    """Run every network over every image, all of them on one image before the next.

    Args:
        runners: float32 [1, C, h, w] to the output, float32 [1, ...], by name.
        compared: names of the trained network and of the deployed one.
        photos: at least one.
        preprocess: pixels to input.
        task: what the outputs mean.
        classes: the names that the data has for them.
        own: the preprocessing of networks that take another, by name.

    Raises:
        KDError: `output-nonfinite`, a network gave NaN or infinity; `labels-invalid`;
            `label-missing`; `test-empty`, there are no photos.
    """
    if not photos:
        raise KDError(
            "test-empty",
            "there are no test images, so no gate can decide",
            where="[data] test",
            fix="list the test images in the split's file",
        )
    prepare = {name: (own or {}).get(name, preprocess) for name in runners}
    seen = _Seen(task, classes, compared, tuple(runners))
    for photo in counted(photos, len(photos), "verify", "test images"):
        views = {one: one.view(photo) for one in dict.fromkeys(prepare.values())}
        outputs = {
            name: _finite(runner(views[prepare[name]][0]), name, photo)
            for name, runner in runners.items()
        }
        seen.add(photo, outputs, {name: views[prepare[name]][1] for name in runners})
    return seen.evaluation()


class _Seen:
    """What is kept of the images that were run, for an `Evaluation`."""

    def __init__(
        self,
        task: Task,
        classes: Sequence[str] | None,
        compared: tuple[str, str],
        names: Sequence[str],
    ) -> None:
        self.task, self.classes, self.compared = task, classes, compared
        self.predicted: dict[str, list[Any]] = {name: [] for name in names}
        self.maps: dict[str, list[Floats]] = {name: [] for name in names}
        self.difficulty: list[float] = []
        self.signal = self.noise = self.worst = 0.0

    def add(self, photo: Photo, outputs: Mapping[str, Output], frames: Mapping[str, Frame]) -> None:
        """One photo's outputs, and where it lay in each network's input."""
        task, pair = self.task, (outputs[self.compared[0]], outputs[self.compared[1]])
        true = _truth(task, photo, pair[1], self.classes)
        for name, whole in outputs.items():
            output = task.within(whole, frames[name])
            if name == self.compared[1]:
                self.difficulty.append(task.difficulty(output, true))
            self.predicted[name].append(task.predictions(output)[0])
            self.maps[name].append(task.map_errors(output, photo, frames[name]))
        signal, noise = powers(*pair)  # of whole outputs: whether both compute the same
        self.signal, self.noise = self.signal + signal, self.noise + noise
        self.worst = max(self.worst, relative_error(*pair))

    def evaluation(self) -> Evaluation:
        """Of all photos."""
        mode = f"{self.compared[1]} against {self.compared[0]} on test images"
        agreed = decibels(self.signal, self.noise)
        return Evaluation(
            {name: np.array(values) for name, values in self.predicted.items()},
            {name: np.array(rows) for name, rows in self.maps.items() if self.task.map_metrics},
            np.array(self.difficulty),
            Parity(agreed, self.worst, len(self.difficulty), mode),
        )


def _truth(task: Task, photo: Photo, output: Output, classes: Sequence[str] | None) -> float:
    true = task.truth(photo)
    problem = task.check_labels([true], task.outputs_of(output.shape), classes)
    if problem is not None:
        raise KDError("labels-invalid", problem, photo.name, "correct the label of the test image")
    return true


def _finite(output: Output, name: str, photo: Photo) -> Output:
    if not np.isfinite(output).all():
        raise KDError(
            "output-nonfinite",
            f"the {'earlier bundle' if name == 'previous' else name} gave NaN or infinity",
            where=photo.name,
            fix="check its weights; in fp16, a value over 65504 overflows",
        )
    return output


def pick_examples(difficulty: Floats) -> dict[str, int]:
    """The images that the report draws, by index.

    `best`, `median` and `worst` have the smallest, the median and the largest difficulty;
    `worst_2` and `worst_3` follow the worst, where there are as many images beside the others.
    """
    order = [int(index) for index in np.argsort(difficulty, kind="stable")]
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    for place in range(2, MOST_DRAWN + 1):
        index = order[-min(place, len(order))]
        if index not in chosen.values():
            chosen[f"worst_{place}"] = index
    return chosen


def example_arrays(
    photo: Photo,
    preprocess: Preprocess,
    networks: Mapping[str, Runner],
    task: Task,
    own: Mapping[str, Preprocess] | None = None,
) -> dict[str, NDArray[np.uint8] | Output]:
    """What the report draws of a photo.

    Args:
        photo: the photo.
        preprocess: pixels to input.
        networks: those whose maps are drawn, by name; none for outputs that are no maps.
        task: what the maps mean.
        own: the preprocessing of those that take another, by name.

    Returns:
        `pixels`, uint8 [H, W, C]: the image as the networks saw it, scaled, with the mean colour
        where it is padded; and by the name of each network what `Task.drawn` gives over exactly
        that area, as of a density float32 [h, w], 0 in the padding. With `truth`, likewise,
        what `Task.drawn_truth` gives, if anything.
    """
    given = photo.pixels(preprocess.channels)
    image, frame = preprocess(given), preprocess.frame(*given.shape[:2])
    std, mean = np.array(preprocess.std, np.float32), np.array(preprocess.mean, np.float32)
    inside = frame.inside(*frame.plane)[..., None]
    colour = image[0].transpose(1, 2, 0) * inside * std + mean
    pixels = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
    maps = {
        name: task.drawn(run((own or {}).get(name, preprocess)(given)), frame)
        for name, run in networks.items()
    }
    truth = task.drawn_truth(photo, frame) if networks else None
    return {"pixels": pixels, **maps, **({} if truth is None else {"truth": truth})}
