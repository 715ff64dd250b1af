"""Choose the images of the pool to label next: those that are unlike all labelled ones."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from torch import nn

    from kdcompile.config.spec import Spec
    from kdcompile.data.coreset import Floats
    from kdcompile.data.photo import Photo
    from kdcompile.passes.manager import Plan

log = logging.getLogger("kdcompile")


class Proposed(TypedDict):
    """A photo, and how far its answer was from all covered ones when it was chosen."""

    name: str
    distance: float


class LeftOut(TypedDict):
    """A photo of the pool that a split holds, and where."""

    name: str
    twin: str


class ToLabel(TypedDict):
    """`kdcompile plan --label`: the photos, best first, and what they were chosen by and from."""

    images: list[Proposed]
    networks: list[str]
    pool: int
    labelled: int
    left_out: list[LeftOut]


def to_label(plan: "Plan", count: int) -> dict[str, Any]:
    """The photos of the pool that k-center chooses, beside the training photos: a `ToLabel`.

    What the teacher answers, and the student where this build has trained it: the mean of both
    (PCoreSet, arXiv 2506.00910, whose student has a head for labels and one for the teacher).
    Photos are read one batch at a time; what is kept of each is a few numbers.

    Args:
        plan: of the build.
        count: at least 1; all photos of the pool where there are no more.

    Raises:
        KDError: those of `load_pool` and of decoding; `teacher-forward`, `teacher-output`,
            `output-nonfinite`.
    """
    from kdcompile.data.coreset import k_center
    from kdcompile.data.pool import load_pool
    from kdcompile.data.splits import load_splits

    spec = plan.spec
    splits = load_splits(spec.data, spec.folder)
    pool = load_pool(spec.data, spec.folder, splits)
    networks = _networks(plan)
    points = answers(spec, networks, [*splits.train, *pool.photos])
    known = len(splits.train)
    chosen, distances = k_center(points[known:], points[:known], count)
    found: ToLabel = {
        "images": [
            {"name": pool.photos[index].name, "distance": distance}
            for index, distance in zip(chosen, distances, strict=True)
        ],
        "networks": list(networks),
        "pool": len(pool.photos),
        "labelled": known,
        "left_out": [{"name": row["name"], "twin": row["twin"]} for row in pool.left_out],
    }
    return dict(found)


def lines(found: dict[str, Any]) -> list[str]:
    """The names alone, one a line; what is to be said of them is logged."""
    log.info(
        "%d of %d images, by the %s, given %d labelled ones",
        len(found["images"]),
        found["pool"],
        " and the ".join(found["networks"]),
        found["labelled"],
    )
    if found["left_out"]:
        first = found["left_out"][0]
        log.info(
            "left out, as a split holds them: %d (%s is %s)",
            len(found["left_out"]),
            first["name"],
            first["twin"],
        )
    return [image["name"] for image in found["images"]]


def _networks(plan: "Plan") -> dict[str, "nn.Module"]:
    """The teacher, and the student if it is trained, on the device."""
    from kdcompile.distill.training_context import training_device
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import load_student
    from kdcompile.passes.teacher import output_shape
    from kdcompile.tasks.task import task_of

    spec, made, device = plan.spec, plan.found(), training_device()
    teacher = load_teacher(spec)
    networks = {"teacher": teacher}
    if "distill" in made:
        networks["student"] = load_student(spec, made["distill"], teacher)
    networks = {name: network.to(device) for name, network in networks.items()}
    output_shape(teacher, spec.export.profile[1], device, task_of(spec))
    return networks


def answers(
    spec: "Spec", networks: Mapping[str, "nn.Module"], photos: Sequence["Photo"]
) -> "Floats":
    """What the networks answer to each photo: points [N, K] that distances are taken of.

    Raises:
        KDError: those of decoding; `output-nonfinite`.
    """
    from kdcompile.core.progress import counted
    from kdcompile.data.coreset import mean_of, space
    from kdcompile.distill.evaluate import raw_outputs
    from kdcompile.distill.training_context import training_device
    from kdcompile.tasks.task import preprocess_of, task_of

    shown = counted(photos, len(photos), "label", "photos")
    prepare = preprocess_of(spec)
    seen, done, task = [], 0, task_of(spec)
    for batch, frames in raw_outputs([*networks.values()], shown, prepare, training_device()):
        _refuse_nonfinite(dict(zip(networks, batch, strict=True)), photos[done:])
        for index, frame in enumerate(frames):
            own = [task.told(output[index : index + 1], frame) for output in batch]
            seen.append(mean_of(own))
        done += len(frames)
    return space(seen)


def _refuse_nonfinite(outputs: Mapping[str, Any], photos: Sequence["Photo"]) -> None:
    import numpy as np

    from kdcompile.data.coreset import nonfinite

    for name, output in outputs.items():
        good = np.isfinite(output).reshape(len(output), -1).all(axis=1)
        if not good.all():
            raise nonfinite(f"the {name}'s output", photos[int(good.argmin())].name)
