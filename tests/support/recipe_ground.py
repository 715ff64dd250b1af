"""Networks and batches of a few numbers for recipes that look at both, in float64."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from kdcompile.config.spec import Distill
from kdcompile.core.distributed import Processes
from kdcompile.data.augment import Batch
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.recipe import LossInputs, RecipeContext
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.taps import Tap, Tapped

NAMES = ("0.1", "1.1")  # of the taps, in both networks
CLASSES = 3


def network(kind, width, seed):
    """Two blocks and a head: densities, logits or a value of images [N, 1, H, W]."""
    torch.manual_seed(seed)
    heads = {
        "counting": [nn.Conv2d(2 * width, 1, 1)],
        "classification": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES)],
        "regression": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 1)],
    }
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
        nn.Sequential(*heads[kind]),
    ).double()


def targets(kind, number, side=6, seed=5):
    """Labels of a batch of float64 images."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "counting":
        return torch.rand(number, 1, side, side, generator=generator).double()
    if kind == "classification":
        return torch.randint(CLASSES, (number,), generator=generator)
    return torch.rand(number, 1, generator=generator).double() * 9


class Bench:
    """A recipe with its networks: `inputs(images)` is what the trainer gives it for a batch.

    kind: of the task. others: the further teachers. dtype: of networks, images and recipe.
    options: of `[distill]`.
    """

    def __init__(
        self, name, kind, *, teacher=None, student=None, others=(), side=6, dtype=torch.float64,
        **options,
    ):  # fmt: skip
        self.kind, self.side, self.dtype = kind, side, dtype
        self.teacher = (teacher or network(kind, 4, 0)).requires_grad_(False).eval().to(dtype)
        self.student = (student or network(kind, 2, 1)).to(dtype)
        self.others = [other.requires_grad_(False).to(dtype) for other in others]
        options = Distill(**options)
        objective = OBJECTIVES[kind](options, targets(kind, 8, side))
        taps = [
            Tap(n, n, *(list(m.get_submodule(n[0]).parameters())[1].numel()
                        for m in (self.teacher, self.student)))
            for n in NAMES
        ]  # fmt: skip
        self._tapped = [Tapped(net, NAMES) for net in (self.teacher, self.student)]
        torch.manual_seed(2)
        self.recipe = find_recipe(name)(taps, options, objective)
        self.recipe.prepare(self.ground())
        self.recipe.to(dtype)

    def ground(self):
        """What the recipe stands on."""
        images = self.images(2)
        batch = Batch(images, targets(self.kind, 2, self.side), torch.arange(2))
        return RecipeContext(
            self.teacher, self.student, None, self.others, 2, lambda: iter([batch]),
            torch.no_grad()(self._tapped[0]), nullcontext, Processes(),
        )  # fmt: skip

    def images(self, number, seed=3):
        """A batch."""
        generator = torch.Generator().manual_seed(seed)
        shape = (number, 1, self.side, self.side)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def inputs(self, images, target=None):
        """As `Trainable.inputs`."""
        with torch.no_grad():
            output, maps = self._tapped[0](images)
            others = [other(images) for other in self.others]
        own, features = self._tapped[1](images)
        target = targets(self.kind, len(images), self.side) if target is None else target
        return LossInputs(own, target, output, features, maps, images, None, None, others)

    def terms(self, images, **changed):
        """The recipe's own terms of a batch, some inputs replaced."""
        return self.recipe.extra(replace(self.inputs(images), **changed))
