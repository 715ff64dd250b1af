"""Student and recipe as one module, with the outputs of the frozen networks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdcompile.distill.recipe import LossInputs, Recipe
from kdcompile.distill.taps import Tapped

FIT_PIXELS = 1 << 16  # of the crops that adapters are fitted on
FIT_CROPS = (4, 16)  # at least, at most


def fit_crops(side: int) -> int:
    """How many crops of so many pixels a side adapters are fitted on."""
    least, most = FIT_CROPS
    return min(max(-(-FIT_PIXELS // side**2), least), most)


@contextmanager
def in_training(network: nn.Module) -> Iterator[None]:
    """Training mode, in which batch norms read the batch as they will; their statistics stay."""
    before = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        yield
    finally:
        for buffer, old in zip(network.buffers(), before, strict=True):
            buffer.copy_(old)


class Seen(NamedTuple):
    """What frozen networks say of a batch: the teacher, its maps, the first student, others.

    photo: int64 [B], the index of each crop's photo.
    """

    teacher: Tensor | None
    maps: Sequence[Tensor]
    first: Tensor | None
    others: Sequence[Tensor]
    photo: Tensor


class Trainable(nn.Module):
    """Student and recipe in one module: from images and what is seen of them to the loss terms."""

    def __init__(self, student: Tapped, recipe: Recipe) -> None:
        super().__init__()
        self.student, self.recipe = student, recipe
        self.names: tuple[str, ...] = ()

    def inputs(self, images: Tensor, target: Tensor, seen: Seen) -> LossInputs:
        """The student's forward pass beside what is seen."""
        output, own = self.student(images)
        return LossInputs(
            output, target, seen.teacher, own, seen.maps, images, seen.photo, seen.first,
            seen.others,
        )  # fmt: skip

    def forward(self, images: Tensor, target: Tensor, seen: Seen) -> Tensor:
        """float32 [terms], in the order of `names`."""
        terms = self.recipe(self.inputs(images, target, seen))
        return torch.stack([terms[name].float() for name in self.names])
