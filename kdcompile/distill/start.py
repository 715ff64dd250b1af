"""Where the student starts: from the teacher's knowledge, from a file, or at random."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.artifact import is_sealed, seal, write_json
from kdcompile.data.augment import Batch, CropSampler
from kdcompile.data.images import ImageStore
from kdcompile.data.prepare import Preprocess
from kdcompile.distill.inherit import inherit
from kdcompile.distill.objective import OBJECTIVES, make_objective
from kdcompile.distill.schedule import stage_plans
from kdcompile.distill.shapes import class_counts, output_stride
from kdcompile.distributed import processes
from kdcompile.models.factory import load_weights, write_weights
from kdcompile.spec import Spec

log = logging.getLogger("kdcompile")
CROPS_AT_ONCE = 4


def kept_start(
    path: Path,
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    architecture: Mapping[str, Any],
    store: ImageStore,
    initial: Path | None = None,
) -> None:
    """`start_student`, made once: kept at `path`, and what it found beside it as JSON.

    Of several processes the first one makes it and the others read it.
    """
    place = processes()
    files = (path, path.with_suffix(".json"))
    if place.is_main and not all(is_sealed(file) for file in files):
        report = start_student(spec, teacher, student, architecture, store, initial)
        write_json(files[1], report)
        write_weights(path, student.state_dict())
        for file in files:
            seal(file)
    place.barrier()
    load_weights(student.cpu(), path)


def start_student(
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    architecture: Mapping[str, Any],
    store: ImageStore,
    initial: Path | None = None,
) -> dict[str, Any] | None:
    """Give the student its first weights, in place.

    Args:
        spec: its sections seed, task, data, student, distill and export.
        teacher: in inference mode.
        student: of the architecture.
        architecture: as the search wrote it.
        store: the training photos, on the device where this is worked out.
        initial: weights that a search has put together from blocks that imitate the teacher's.

    Returns:
        What inheriting found, layer by layer; None for the other ways to start.

    Raises:
        KDError: those of `load_weights` and of `inherit`.
    """
    if spec.student.weights is not None:
        counts = class_counts(teacher, student, spec)
        load_weights(student, spec.student.weights, counts)
    if spec.student.init != "inherit":
        return None
    if initial is not None:
        load_weights(student, initial)
        return None
    teacher, student = teacher.to(store.device).eval(), student.to(store.device)
    crops = batches(spec, teacher, student, store)
    options = stage_plans(spec.distill)[0].options
    labels = torch.cat([batch.target for batch in crops])
    objective = make_objective(spec.task.kind, options, labels)

    def loss(output: Tensor, index: int) -> Tensor:
        return objective.hard(output, crops[index].target)

    images = [batch.images for batch in crops]
    report = inherit(teacher, student, architecture, images, spec.student.importance, loss)
    log.info("distill: inherited the teacher's channels in %.1f s", report["seconds"])
    return report


def batches(spec: Spec, teacher: nn.Module, student: nn.Module, store: ImageStore) -> list[Batch]:
    """Real training crops of the first stage, without flips or colour."""
    first = stage_plans(spec.distill)[0].options
    plain = {"batch": min(CROPS_AT_ONCE, spec.student.crops), "colour": 0.0, "views": 0}
    options = first.model_copy(update=plain)
    preprocess = Preprocess.of(spec.data, spec.export)
    stride = output_stride(teacher, student, spec)
    kind = OBJECTIVES[spec.task.kind]
    targets = kind.targets(store.photos, stride, spec.data.sigma, store.device)
    sampler = CropSampler(
        store.photos, preprocess, options, targets, spec.seed, store.device, store=store
    )
    return [sampler.batch(step) for step in range(-(-spec.student.crops // options.batch))]
