"""Recipe `mixup`: partial mixup in distillation (Choi et al., WACV 2023, arXiv 2211.03946)."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcompile.data.augment import Batch
from kdcompile.distill.embedding import promoted
from kdcompile.distill.evaluate import peek
from kdcompile.distill.recipe import About, LossInputs, Recipe, RecipeContext
from kdcompile.kernels.kd_kl import kd_kl

EPS = 1e-6  # least standard deviation of a row of logits, as in kernels/kd_kl.py


class Mixup(Recipe):
    """Both networks see a few images of each batch blended with another one, labels and all.

    Exactly ceil(share B) of B images are mixed, each with another image of the batch and in its
    own proportion, Beta(1, 1) as published. An image keeps the larger part of its blend, which
    changes nothing for a random pair and lets the blend pass for a crop of that photo. Densities
    and values mix linearly, so counts stay exact; classes become probabilities [B, K].
    """

    about = About(
        name="mixup",
        summary="a tenth of each batch are blends of two images; each row of logits sets its own"
        " temperature",
        formula="x = l x_i + (1 - l) x_j, y likewise, l ~ Beta(1, 1) folded to l >= 1/2."
        " Classes: hard CE(S / s(S), y) + soft KL(softmax(T / s(T)), softmax(S / s(S))), s the"
        " unbiased deviation of a row, hard 0.1, soft 0.9, no temperature. Elsewhere kd on blends",
        source="Choi et al., Understanding the Role of Mixup in Knowledge Distillation, WACV 2023,"
        " arXiv 2211.03946; the share is exact, which the released code's is not",
        cost="as kd",
        home="augmentation",
    )
    mixes_images = True
    reads_maps = True
    tasks = ("counting", "classification", "regression", "generic")
    why = "masks cannot be blended"
    share: ClassVar[float] = 0.1  # of the batch, the paper's partial mixup

    def prepare(self, context: RecipeContext) -> None:
        """Count the student's classes on one crop."""
        self._classes = 0
        if self.objective.of_classes:
            crop = next(iter(context.crops())).images[:1]
            with context.autocast():
                self._classes = peek(context.student, crop).shape[1]

    def view(self, batch: Batch) -> Batch:
        """The batch with some of its images blended; `photo` is that of the larger part."""
        device, target = batch.images.device, batch.target
        if self._classes:
            target = (target[:, None] == torch.arange(self._classes, device=device)).float()
        mixed, partner = pairs(len(target), self.share, device)
        rest = torch.rand(len(mixed), device=device) / 2  # 1 - l: the smaller part
        images = _blended(batch.images, mixed, partner, rest)
        return Batch(images, _blended(target, mixed, partner, rest), batch.photo)

    def base(self, inputs: LossInputs) -> dict[str, Tensor]:
        """For classes `hard` and `soft` of logits over their deviation, else the objective's."""
        if not self.objective.of_classes:
            return super().base(inputs)
        terms = {"hard": cross_entropy(scaled(promoted(inputs.student)), inputs.target)}
        if inputs.teacher is not None:
            terms["soft"] = self.soft(inputs.student, inputs.teacher)
        return terms

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits over their deviation for classes, else the objective's."""
        if not self.objective.of_classes:
            return super().soft(student, teacher)
        return kd_kl(student, teacher, standardize=True)


def pairs(size: int, share: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which images of a batch are mixed, int64 [ceil(share * size)], and with which others.

    Without replacement: none is mixed twice, none with itself unless it is alone, and none is the
    partner of two.
    """
    number = math.ceil(round(size * share, 6))  # 0.1 * 70 is a little above 7
    order = torch.rand(size, device=device).argsort()
    return order[:number], order.roll(-1)[:number]


def scaled(logits: Tensor) -> Tensor:
    """Rows [N, K] over their unbiased standard deviation, less their mean; constant ones are 0."""
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(logits.shape[1] - 1, 1)
    return centred / variance.clamp_min(EPS**2).sqrt()


def _blended(values: Tensor, mixed: Tensor, partner: Tensor, rest: Tensor) -> Tensor:
    """The rows `mixed` of `values` [B, ...], each moved by `rest` towards its partner."""
    own, other = (promoted(values.index_select(0, rows)) for rows in (mixed, partner))
    part = rest.to(own.dtype).view(-1, *[1] * (values.dim() - 1))
    blend = torch.lerp(own, other, part).to(values.dtype)
    return values.clone().index_copy_(0, mixed, blend)  # a clone keeps the memory format
