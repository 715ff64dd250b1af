"""Recipe `ft`: factor transfer (Kim, Park, Kwak, NeurIPS 2018, arXiv 1802.04977)."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.core.progress import counted
from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import MapRecipe, direction
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, RecipeContext
from kdcompile.distill.taps import Tap

RATE = 0.5  # channels of a factor for one of the teacher's
SLOPE = 0.1
STEPS = 100  # of the paraphraser, before the training
LR = 3e-3


class FactorTransfer(MapRecipe):
    """Labels, soft targets, and the teacher's last map as its auto-encoder paraphrases it."""

    about = About(
        name="ft",
        summary="labels, soft targets, and factors: the teacher's last map, paraphrased",
        formula="kd + ft * |f(S) / |f(S)| - p(T) / |p(T)||, of the last tap, p the encoder of an"
        " auto-encoder of T, learnt before and frozen, f the student's translator; paper: the"
        " mean absolute difference, weight as in Tian et al., 2020",
        source="Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer,"
        " NeurIPS 2018, arXiv 1802.04977; here two convolutions each way, there three with batch"
        " norms",
        cost=f"kd + four 3x3 convolutions at the last tap; before it {STEPS} steps of the encoder",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"ft": 3.0}, "paper": {"ft": 200.0}}

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """A translator that learns and a paraphraser that does not."""
        super().__init__(taps, options, objective)
        own, theirs = taps[-1].student_channels, taps[-1].teacher_channels
        width = max(1, round(theirs * RATE))
        self.translator = _layers(own, own, width)
        self.paraphraser = _layers(theirs, theirs, width)
        _freeze(self.paraphraser)

    def learn(self, context: RecipeContext) -> None:
        """The auto-encoder on a crop of every photo, again and again for a number of steps."""
        first, last = _convolutions(self.paraphraser)
        encoder = _layers(first.weight.shape[1], len(first.weight), len(last.weight))
        decoder = _layers(len(last.weight), len(first.weight), first.weight.shape[1])
        encoder, decoder = encoder.to(first.weight), decoder.to(first.weight)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], LR)
        maps = _maps(context)
        unit = _deviation(next(maps))
        for teacher in counted(islice(maps, STEPS), STEPS, "distill", "steps of the paraphraser"):
            target = teacher / unit
            optimizer.zero_grad(set_to_none=True)
            functional.mse_loss(decoder(encoder(target)), target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():  # the paraphraser takes maps as they are
            _convolutions(encoder)[0].weight.div_(unit)
        self.paraphraser.load_state_dict(encoder.state_dict())

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`ft`: between unit factors; one of 0 stays 0."""
        student, teacher = (
            promoted(m[-1]) for m in (inputs.student_features, inputs.teacher_features)
        )
        own, theirs = (
            direction(promoted(factor).flatten(1), dim=1)
            for factor in (self.translator(student), self.paraphraser(teacher))
        )
        return {"ft": distance(own, theirs, power=2 if self.is_mean else 1)}


def distance(own: Tensor, theirs: Tensor, power: int) -> Tensor:
    """Of unit factors [N, D]: the length of the difference (2), or its mean absolute value (1)."""
    if power == 1:
        return functional.l1_loss(own, theirs)
    lengths: Tensor = torch.linalg.vector_norm(own - theirs, dim=1)
    return lengths.mean()


def _layers(*widths: int) -> nn.Sequential:
    """3x3 convolutions from width to width, with leaky rectifiers between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])


def _convolutions(layers: nn.Sequential) -> list[nn.Conv2d]:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _freeze(module: nn.Module) -> None:
    """Make buffers of its parameters: kept in checkpoints, and unknown to the optimizer."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())


def _maps(context: RecipeContext) -> Iterator[Tensor]:
    """The teacher's last map of the photos' crops, without end."""
    while True:
        for batch in context.crops():
            yield promoted(context.look(batch.images)[1][-1])


def _deviation(maps: Tensor) -> Tensor:
    """Of all values around 0; 1 where there is none."""
    square = maps.square().mean()
    return torch.where(square > 0, square, 1).sqrt()
