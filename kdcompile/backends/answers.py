"""The exported teacher's outputs for samples of a task that imitates them."""

from collections.abc import Sequence

import numpy as np

from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.onnx_graph.session import cpu_session, feeds_of
from kdcompile.tasks.task import Task


def answer_by(
    export: Artifact, photos: Sequence[Photo], preprocess: Preprocess, task: Task
) -> Sequence[Photo]:
    """The same photos, each with the teacher's answer; as they are where the task has labels.

    Args:
        export: has the teacher's ONNX file.
        photos: those that have an answer keep it.
        preprocess: from a photo to the networks' input.
        task: what the outputs mean.
    """
    if not task.takes_rows:
        return photos
    session = cpu_session(export.file("teacher.onnx"))
    for photo in photos:
        if not photo.answer:
            outputs = session.run(None, feeds_of(session, preprocess.input_of(photo)))
            for port, value in zip(session.get_outputs(), outputs, strict=True):
                photo.answer[port.name] = np.asarray(value, np.float32)
    return photos
