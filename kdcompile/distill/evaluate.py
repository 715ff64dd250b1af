"""Counts of whole photos by a PyTorch network."""

from collections.abc import Sequence

import torch
from torch import nn

from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.distill.counting import counts


@torch.no_grad()
def predict(
    model: nn.Module, photos: Sequence[Photo], preprocess: Preprocess, device: torch.device
) -> list[float]:
    """The predicted count of each photo, one photo at a time, in float32."""
    was_training = model.training
    model.eval()
    found = []
    for photo in photos:
        image = torch.from_numpy(preprocess(photo.pixels(preprocess.channels)))
        found.append(counts(model(image.to(device))))
    model.train(was_training)
    return torch.cat(found).tolist()
