"""Predictions for whole photos by a PyTorch network."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.data.task import Task
from kdcompile.progress import counted

BATCH, BATCH_PIXELS = 64, 512 * 1024  # images, and pixels of them, in one forward pass


@torch.no_grad()
def predict(
    model: nn.Module,
    photos: Sequence[Photo],
    preprocess: Preprocess,
    device: torch.device,
    task: Task,
) -> list[float]:
    """The prediction for each photo, in float32 whatever the training's precision is.

    Neighbours of equal size run together; a large photo runs alone.
    """
    was_training = model.training
    model.eval()
    found: list[float] = []
    with torch.autocast(device.type, enabled=False), _untimed_convolutions():
        shown = counted(photos, len(photos), "validation", "photos")
        for images in _batches(shown, preprocess):
            output = model(torch.from_numpy(images).to(device))
            found += task.predictions(output.float().cpu().numpy()).tolist()
    model.train(was_training)
    return found


@contextmanager
def _untimed_convolutions() -> Iterator[None]:
    """cuDNN's own choice: photos have many sizes, and timing each takes longer than running it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _batches(photos: Iterable[Photo], preprocess: Preprocess) -> Iterator[NDArray[np.float32]]:
    """Inputs [N, C, h, w], in the order of the photos; one batch at a time in memory."""
    batch: list[NDArray[np.float32]] = []
    for photo in photos:
        image = preprocess(photo.pixels(preprocess.channels))
        limit = min(BATCH, max(1, BATCH_PIXELS // (image.shape[2] * image.shape[3])))
        if batch and (len(batch) >= limit or batch[0].shape != image.shape):
            yield np.concatenate(batch)
            batch = []
        batch.append(image)
    if batch:
        yield np.concatenate(batch)
