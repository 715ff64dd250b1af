"""Recipe `crd`: Contrastive Representation Distillation (Tian et al., ICLR 2020)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.distill.embedding import embeddings, unit
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe, RecipeContext
from kdcompile.distill.taps import Tap
from kdcompile.kernels._runtime import full_precision

WIDTH = 128  # of the space that both networks are projected to
NEGATIVES = 16384  # an image and step
TEMPERATURE = 0.07
MOMENTUM = 0.5
EPS = 1e-7
UNSET = -1.0
WIDE = 1 << 62  # random numbers below this, so that a remainder favours none


class ContrastiveTransfer(Recipe):
    """An image's two embeddings are told from those of other photos, kept in two banks.

    Banks and heads are in the recipe's state. Photos of the image's own class are no negatives;
    without classes all photos but its own are. An embedding of the step enters the bank after the
    loss; of a photo that is in the step twice, the last one.
    """

    about = About(
        name="crd",
        summary="tell each image's embedding in one network from other photos' in the other",
        formula="kd + crd * mean_i of -log h_i - sum_k log(1 - h_k), h = p / (p + K/N),"
        " p = exp(cosine / 0.07) / Z, for the student against the teacher's bank and the reverse;"
        " K = 16384 of N photos, with repetition; under mean over 2 (log(K + 1) + 1), its value"
        " for embeddings that say nothing",
        source="Tian, Krishnan & Isola, Contrastive Representation Distillation, ICLR 2020,"
        " arXiv 1910.10699; weight 0.8",
        cost="kd + B x N cosines and 16384 negatives an image, twice; 1 KB a photo in memory",
        evidence="tests/distill/recipes/test_crd.py: float64 and three steps of torchdistill;"
        " docs/recipes.md",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"crd": 5.0}, "paper": {"crd": 0.8}}
    needs_taps = True
    reads_labels = True
    banks: Tensor
    scales: Tensor
    order: Tensor
    first: Tensor
    alike: Tensor

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """A linear head for each network's last tap."""
        super().__init__(taps, options, objective)
        widths = (taps[-1].student_channels, taps[-1].teacher_channels)
        self.heads = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.processes = Processes()

    @classmethod
    def refuse_labels(cls, labels: Sequence[float], classes: int | None) -> None:
        """One image, or images of one class."""
        if len(labels) < 2:
            raise _alone("image")
        if classes is not None and len(set(labels)) < 2:
            raise _alone("class")

    def prepare(self, context: RecipeContext) -> None:
        """Banks of random embeddings, and every photo alone in its class.

        `order` has the photos by class, `first` the place of each one's class in it, `alike` how
        many are in that class.

        Raises:
            KDError: `recipe-photos`, there is nothing to tell a photo from.
        """
        photos = context.photos
        if photos < 2:
            raise _alone("image")
        side = math.sqrt(3 / WIDTH)  # rows of length about 1, as published
        self.processes = context.processes
        self.register_buffer("banks", (2 * torch.rand(2, photos, WIDTH) - 1) * side)
        self.register_buffer("scales", torch.full((2,), UNSET))
        self.register_buffer("order", torch.arange(photos))
        self.register_buffer("first", torch.arange(photos))
        self.register_buffer("alike", torch.ones(photos, dtype=torch.int64))

    @torch.no_grad()
    def learn(self, context: RecipeContext) -> None:
        """The photos of each class, where labels are classes.

        Raises:
            KDError: `recipe-photos`.
        """
        if not self.objective.of_classes:
            return
        classes = torch.zeros_like(self.order)
        for batch in context.crops():
            classes[batch.photo] = batch.target
        self.order.copy_(classes.argsort(stable=True))
        ranked = classes[self.order]
        self.first.copy_(torch.searchsorted(ranked, classes))
        self.alike.copy_(torch.searchsorted(ranked, classes, right=True) - self.first)
        if bool((self.alike == len(classes)).any()):
            raise _alone("class")

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`crd`; a step with gradients also fills the banks, from the images of all processes."""
        assert inputs.photo is not None, "the trainer says whose crops these are"
        photo, found = inputs.photo, embeddings(inputs)
        shown = torch.cat([photo[:, None], self._negatives(photo)], 1)
        with full_precision(found[0]):
            rows = torch.stack([unit(h(e)) for h, e in zip(self.heads, found, strict=True)])
            loss = self._contrast(rows, shown)
        if torch.is_grad_enabled():  # `fit` looks at the terms before there is a step
            self._remember(rows.detach(), photo)
        if self.options.reduction == "mean":
            loss = loss / (2 * (math.log(NEGATIVES + 1) + 1))
        return {"crd": loss}

    def _negatives(self, photo: Tensor) -> Tensor:
        """[B, NEGATIVES] photos of other classes, each equally probable, drawn anew."""
        count = len(self.order)
        end = self.first[photo] + self.alike[photo]
        others = (count - self.alike[photo])[:, None]
        random = torch.randint(WIDE, (len(photo), NEGATIVES), device=photo.device)
        return self.order[(end[:, None] + random % others) % count]

    def _contrast(self, rows: Tensor, shown: Tensor) -> Tensor:
        """The published loss.

        Args:
            rows: [2, B, d], of student and teacher.
            shown: int64 [B, 1 + K], each image's photo and its negatives.
        """
        banks = self.banks.clone()  # kept for the backward pass, when the bank has new rows
        cosines = rows @ banks.flip(0).mT  # the student's with the teacher's bank, and the reverse
        logits = cosines.gather(2, shown.expand(2, -1, -1)) / TEMPERATURE
        mean = self.processes.mean(logits.detach().exp().mean((1, 2)))
        scales = torch.where(self.scales < 0, mean * banks.shape[1], self.scales)
        if torch.is_grad_enabled():
            self.scales.copy_(scales)
        logits = logits - scales.log()[:, None, None]
        return nce(logits, banks.shape[1]).sum()

    @torch.no_grad()
    def _remember(self, rows: Tensor, photo: Tensor) -> None:
        """Move the banks' rows of these photos towards the embeddings of all processes."""
        rows = torch.cat(self.processes.gather(rows), 1)
        photo = torch.cat(self.processes.gather(photo))
        place = torch.arange(len(photo), device=photo.device)
        last = torch.where(photo[:, None] == photo, place, -1).amax(1)  # so that order is no matter
        moved = self.banks[:, photo].lerp(rows[:, last], 1 - MOMENTUM)
        self.banks.index_copy_(1, photo, unit(moved))


def nce(logits: Tensor, photos: int) -> Tensor:
    """Noise-contrastive loss [...], of log p [..., B, 1 + K], the image's own first.

    With noise c = K / photos: the mean over the images of
    log((p_0 + c) / p_0) + sum_k log((p_k + c) / c).
    """
    noise = (logits.shape[-1] - 1) / photos
    own, others = logits[..., 0], logits[..., 1:]
    right = (own.exp() + noise + EPS).log() - own
    return (right + ((others.exp() + EPS) / noise).log1p().sum(-1)).mean(-1)


def _alone(what: str) -> KDError:
    return KDError(
        "recipe-photos",
        f"recipe crd needs images of different classes, and there is one {what}",
        where="[data] train",
        fix="train on more of them, or use kd",
    )
