"""Recipe `hard`: Hard Augmentations for Robust Distillation (Nix et al., arXiv 2305.14890)."""

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, pad

from kdcompile.data.augment import Batch
from kdcompile.distill.embedding import promoted
from kdcompile.distill.evaluate import peek
from kdcompile.distill.objective import DensityObjective, Objective, ValueObjective
from kdcompile.distill.recipe import About, Recipe, RecipeContext
from kdcompile.kernels._runtime import full_precision

BRIGHTNESS = 0.3  # largest shift, in deviations of the pixels
CONTRAST = 0.3  # largest logarithm of the factor
NOISE = 0.2  # largest deviation of the noise of an image
TURN, SHIFT = math.radians(15), 0.1  # largest angle, and way as a share of the side


class HardViews(Recipe):
    """kd on the hardest of a few random views of each image that its teacher answers alike.

    The paper trains an augmenter; here a search stands for it. Of `candidates` views of an image
    those count on which the teacher's answer is within `tolerance` of its answer to the image;
    the student sees the one on which it is farthest from the teacher, or the image if none
    counts. Views differ in brightness, contrast, blur and noise, those of classes also in turn
    and place, for densities would have to move along.
    """

    about = About(
        name="hard",
        summary="train where the student errs and the teacher does not: the hardest of 4 views",
        formula="kd on x* = argmax D(T(x'), S(x')) over 4 random views x' with D(T(x), T(x')) <="
        " tolerance, x where there is none. D: KL of classes (0.1 nats); squared error of"
        " densities and values over the labels' mean square or variance (0.05)",
        source="Nix et al., HARD: Hard Augmentations for Robust Distillation, 2023, arXiv"
        " 2305.14890; the learned augmenter is replaced by a search of random views",
        cost="kd + 5 teacher and 4 student forwards",
        home="augmentation",
    )
    mixes_images = True
    tasks = ("counting", "classification", "regression", "generic")
    why = "it compares one answer an image"
    candidates: ClassVar[int] = 4
    tolerance: ClassVar[float] = 0.05
    nats: ClassVar[float] = 0.1

    def prepare(self, context: RecipeContext) -> None:
        """Keep the networks at hand."""
        self._networks = (context.student, context.look)  # in a tuple: the student is no submodule

    def view(self, batch: Batch) -> Batch:
        """For each image the view that was chosen; labels and photos as they are.

        Candidates are made one after the other, so that one at a time takes memory.
        """
        student, look = self._networks
        answer, chosen = look(batch.images)[0], batch.images
        farthest = torch.full((len(chosen),), -torch.inf, device=chosen.device)
        for _ in range(self.candidates):
            view = self.candidate(batch.images)
            theirs = look(view)[0]
            gap = distance(theirs, peek(student, view), self.objective)
            is_alike = distance(answer, theirs, self.objective) <= self.limit
            is_harder = is_alike & (gap > farthest)
            farthest = torch.where(is_harder, gap, farthest)
            chosen = torch.where(is_harder.view(-1, 1, 1, 1), view, chosen)
        return replace(batch, images=chosen)

    def candidate(self, images: Tensor) -> Tensor:
        """A random view of each image, in the same type and memory format."""
        moved = turned(images) if self.objective.of_classes else images
        return torch.empty_like(images).copy_(recoloured(moved))

    @property
    def limit(self) -> float:
        """How far the teacher's answers to an image and to a view of it may be apart."""
        return self.nats if self.objective.of_classes else self.tolerance


def distance(reference: Tensor, other: Tensor, objective: Objective) -> Tensor:
    """How far the answers to each image are apart, [N], at least float32, without a unit.

    Of logits [N, K] KL(softmax(reference), softmax(other)) in nats; of densities and values the
    mean squared error, over what the labels' squares are on average or their variance. Classes
    that only a wider student has are left out.
    """
    reference, other = promoted(reference), promoted(other)
    if isinstance(objective, DensityObjective | ValueObjective):
        scale = objective.scale**2 if isinstance(objective, ValueObjective) else objective.squared
        return (reference - other).flatten(1).square().mean(1) / scale
    log_p, log_q = reference.log_softmax(1), other[:, : reference.shape[1]].log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def recoloured(images: Tensor) -> Tensor:
    """Other brightness, contrast, sharpness and noise; every object stays where it is."""
    images = promoted(images)
    brightness, contrast = BRIGHTNESS * _signed(images), (CONTRAST * _signed(images)).exp()
    mean = images.mean((1, 2, 3), keepdim=True)
    sharp = mean + contrast * (images - mean) + brightness
    wide = pad(sharp, (1, 1, 1, 1), "replicate")
    soft = avg_pool2d(avg_pool2d(wide, 2, stride=1), 2, stride=1)  # 1 2 1 down and across
    blurred = torch.lerp(sharp, soft, _signed(images).abs())
    return blurred + NOISE * _signed(images) * torch.randn_like(images)


def turned(images: Tensor) -> Tensor:
    """Turned about the centre and shifted; the border's pixels fill what was not in sight."""
    images = promoted(images)
    ratio = images.shape[2] / images.shape[3]
    turn, right, down = (_signed(images).flatten() for _ in range(3))
    sine, cosine = (TURN * turn).sin(), (TURN * turn).cos()
    rows = [cosine, -sine * ratio, 2 * SHIFT * right, sine / ratio, cosine, 2 * SHIFT * down]
    way = torch.stack(rows, 1).view(-1, 2, 3)
    with full_precision(images):  # half of it would round places to whole pixels
        grid = affine_grid(way, list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="border", align_corners=False)


def _signed(images: Tensor) -> Tensor:
    """A uniform number in -1..1 for each image, [N, 1, 1, 1]."""
    drawn = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    return 2 * drawn - 1
