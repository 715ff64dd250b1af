"""The teacher's outputs for samples of a task that imitates them."""

from collections.abc import Sequence

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.data.photo import Photo
from kdcompile.distill.evaluate import in_inference, outputs
from kdcompile.distill.training_context import training_device
from kdcompile.models.rows import output_ports
from kdcompile.tasks.along import check_probabilities
from kdcompile.tasks.task import ports_of, preprocess_of, task_of


def answer(spec: Spec, teacher: nn.Module, photos: Sequence[Photo]) -> None:
    """Record the teacher's answer to each sample; nothing where the task has labels.

    Args:
        spec: of the build.
        teacher: on any device, which it leaves for that of the training.
        photos: samples; of those that have an answer it stays.

    Raises:
        KDError: `task-outputs`, they are not what the spec says of them.
    """
    ports, task = ports_of(spec), task_of(spec)
    if ports is None:
        return
    device = training_device()
    teacher.to(device)
    given = output_ports(teacher, ports)
    new = [photo for photo in photos if not photo.answer]
    with in_inference(teacher):
        rows = (
            row
            for (batch,) in outputs([teacher], new, preprocess_of(spec), device, task)
            for row in batch
        )
        for photo, row in zip(new, rows, strict=True):
            found = given.unpack(row[None])
            check_probabilities(task.axes, found, photo.name)
            photo.answer.update(found)
