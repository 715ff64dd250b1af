"""Outputs and predictions of PyTorch networks in inference mode."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompile.core.distributed import Processes
from kdcompile.core.progress import counted
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.tasks.task import Floats, Task

BATCH, BATCH_PIXELS = 64, 512 * 1024  # images, and pixels of them, in one forward pass


@contextmanager
def in_inference(network: nn.Module) -> Iterator[None]:
    """Inference mode; afterwards each module is in its own mode again, whatever happens."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def predict(
    model: nn.Module,
    photos: Sequence[Photo],
    preprocess: Preprocess,
    device: torch.device,
    task: Task,
    shared_by: Processes | None = None,
) -> Floats:
    """The prediction for each photo, in float32 whatever the training's precision is.

    Float64 [N], or of a task of records a row each, [N, W].

    Neighbours of equal size run together; a large photo runs alone. Several processes (`shared_by`)
    share out the photos, and all of them get every prediction.
    """
    among = shared_by or Processes()
    own = photos[among.rank :: among.world]
    shown = counted(own, len(own), "validation", "images")
    found: list[Floats] = []
    with in_inference(model):
        for (output,) in outputs([model], shown, preprocess, device, task):
            found.append(np.asarray(task.predictions(output), np.float64))
    made = np.concatenate(found) if found else np.zeros(0)
    if among.is_alone:
        return made
    rows, each = torch.from_numpy(made), -(-len(photos) // among.world)
    padded = rows.new_full((each, *rows.shape[1:]), float("nan"))
    padded[: len(own)] = rows
    return torch.stack(among.gather(padded), dim=1).flatten(0, 1)[: len(photos)].numpy()


def outputs(
    models: Sequence[nn.Module],
    photos: Iterable[Photo],
    preprocess: Preprocess,
    device: torch.device,
    task: Task,
) -> Iterator[list[NDArray[np.float32]]]:
    """Each model's outputs [N, ...] of one batch after the other, in the order of the photos.

    Float32 whatever the training's precision is, maps without what they say of the padding. The
    models are in inference mode.
    """
    for found, frames in raw_outputs(models, photos, preprocess, device):
        yield [_within(output, frames, task) for output in found]


def raw_outputs(
    models: Sequence[nn.Module],
    photos: Iterable[Photo],
    preprocess: Preprocess,
    device: torch.device,
) -> Iterator[tuple[list[NDArray[np.float32]], list[Frame]]]:
    """The same as the models give them, and where the photos of the batch lie in their inputs."""
    for images, frames in _batches(photos, preprocess):
        given = torch.from_numpy(images).to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _untimed_convolutions():
            found = [model(given).float().cpu().numpy() for model in models]
        yield found, frames  # outside: who reads may stop here, and would go on without gradients


def _within(
    output: NDArray[np.float32], frames: Sequence[Frame], task: Task
) -> NDArray[np.float32]:
    """`Task.within` of a batch's outputs [N, ...], whose photos may lie differently."""
    if not task.uses_frames:
        return output
    each = zip(output, frames, strict=True)
    return np.concatenate([task.within(one[None], frame) for one, frame in each])


@contextmanager
def _untimed_convolutions() -> Iterator[None]:
    """cuDNN's own choice: photos have many sizes, and timing each takes longer than running it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _batches(
    photos: Iterable[Photo], preprocess: Preprocess
) -> Iterator[tuple[NDArray[np.float32], list[Frame]]]:
    """Inputs [N, C, h, w] and where the photos lie in them, in the order of the photos.

    One batch at a time is in memory.
    """
    batch: list[NDArray[np.float32]] = []
    frames: list[Frame] = []
    for photo in photos:
        image, frame = preprocess.view(photo)
        limit = min(BATCH, max(1, BATCH_PIXELS // math.prod(image.shape[2:] or image.shape[1:])))
        if batch and (len(batch) >= limit or batch[0].shape != image.shape):
            yield np.concatenate(batch), frames
            batch, frames = [], []
        batch.append(image)
        frames.append(frame)
    if batch:
        yield np.concatenate(batch), frames


@torch.no_grad()
def peek(student: nn.Module, images: Tensor) -> Tensor:
    """The output for `images` [N, C, H, W], as the student would answer once deployed.

    Batch norms read their running statistics and keep them, dropout draws no number.
    """
    with in_inference(student):
        output: Tensor = student(images)
    return output
