"""The exported teacher's outputs for samples of a task that imitates them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.onnx_graph.session import cpu_session, feeds_of
from kdcompile.tasks.task import Task


def answer_by(
    teacher: Path, photos: Sequence[Photo], preprocess: Preprocess, task: Task
) -> Sequence[Photo]:
    """The same photos, each with the teacher's answer; as they are where the task has labels.

    Args:
        teacher: its ONNX file.
        photos: those that have an answer keep it.
        preprocess: from a photo to the networks' input.
        task: what the outputs mean.
    """
    if not task.takes_rows:
        return photos
    session = cpu_session(teacher)
    for photo in photos:
        if not photo.answer:
            outputs = session.run(None, feeds_of(session, preprocess.input_of(photo)))
            photo.answer.extend(np.asarray(each, np.float32).reshape(-1) for each in outputs)
    return photos
