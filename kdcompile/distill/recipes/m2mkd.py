"""Recipe `m2mkd`: each block of the student learns inside the teacher (Lo et al., 2402.16918).

The blocks lie between taps. Each is taught inside a hybrid: what the teacher has before it, the
student's block, and the rest of the teacher. The published modules meet in the widths of a meta
model and are put together afterwards; here the teacher is that model, and the student is whole
from the first step, so that what the hybrids teach fades while it learns as one.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill, Ramp
from kdcompile.distill.embedding import promoted
from kdcompile.distill.maps import Adapter, fit_adapters
from kdcompile.distill.objective import Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe, RecipeContext
from kdcompile.distill.taps import Rewired, Tap

LABEL = 0.5  # share of the labels in a hybrid's loss, the paper's a
FADE = Ramp(start=1.0, end=0.0, curve="linear")


class Blocks(Recipe):
    """The task's own terms, and that of the hybrids, which fades over the stage.

    A stitch is a 1x1 convolution: `enter` from the teacher's width to the student's, `leave` back.
    """

    about = About(
        name="m2mkd",
        summary="each block of the student learns in the teacher's place, then all together",
        formula="kd + hybrid * mean_i [(1 - a) soft(H_i, T) + a hard(H_i, Y)], a = 0.5;"
        " H_i = rest of the teacher after tap i (L_i(block_i(E_{i-1}(T_{i-1})))), T_i its map"
        " there; E and L are 1x1 convolutions from the teacher's width and back",
        source="Lo et al., m2mKD: Module-to-Module Knowledge Distillation, 2024, arXiv 2402.16918",
        cost="kd + another pass of the student, and of the teacher for each tap, both ways",
    )
    extra_weights: ClassVar[Mapping[str, Mapping[str, float | Ramp]]] = {
        "mean": {"hybrid": FADE},
        "paper": {"hybrid": FADE},
    }
    needs_taps = True
    reads_labels = True

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """Two stitches a tap."""
        super().__init__(taps, options, objective)
        self._taps = list(taps)
        self.enter = nn.ModuleList(Adapter(t.teacher_channels, t.student_channels) for t in taps)
        self.leave = nn.ModuleList(Adapter(t.student_channels, t.teacher_channels) for t in taps)
        self._networks: tuple[Rewired, ...] = ()  # a tuple, so that they are no submodules

    def prepare(self, context: RecipeContext) -> None:
        """Student and teacher once more, to be cut open at the taps."""
        images = next(iter(context.crops())).images[:1]
        names, views = ([t.student for t in self._taps], [t.student_view for t in self._taps])
        student = Rewired(context.student, names, images, views, training=True)
        names, views = ([t.teacher for t in self._taps], [t.teacher_view for t in self._taps])
        self._networks = (student, Rewired(context.teacher, names, images, views))

    def fit(self, inputs: LossInputs) -> None:
        """Stitches by least squares: `enter` to what the whole student has, `leave` from what its
        blocks make of that.

        Both normalise by batch, as they will: the running statistics of a student that starts at
        random are not yet those of its maps.
        """
        theirs = inputs.teacher_features
        fit_adapters(self.enter, theirs, self._own(inputs, None)[0])
        fit_adapters(self.leave, self.blocks(inputs)[0], theirs)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`hybrid`."""
        made, last = self.blocks(inputs)
        return {"hybrid": torch.stack(self.losses(inputs, made, last)).mean()}

    def blocks(self, inputs: LossInputs) -> tuple[list[Tensor], Tensor]:
        """What each block makes of the teacher's map before it, and the output of the last one."""
        pairs = zip(self.enter, inputs.teacher_features, strict=True)
        return self._own(inputs, [stitch(promoted(theirs)) for stitch, theirs in pairs])

    def _own(
        self, inputs: LossInputs, entering: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], Tensor]:
        """The student's maps at the taps and its output; `entering` is what follows each tap."""
        assert inputs.images is not None, "the trainer gives the images"
        made: dict[str, Tensor] = {}
        names = [tap.student for tap in self._taps]
        following = [None] * len(names) if entering is None else entering
        swap = {n: partial(_kept, made, n, x) for n, x in zip(names, following, strict=True)}
        output = self._networks[0](inputs.images, swap)
        return [made[name] for name in names], output

    def losses(self, inputs: LossInputs, made: Sequence[Tensor], last: Tensor) -> list[Tensor]:
        """The loss of each hybrid, in the order of the blocks; the last one ends in its block."""
        assert inputs.images is not None, "the trainer gives the images"
        outputs = []
        for tap, leave, own in zip(self._taps, self.leave, made, strict=True):
            swap = {tap.teacher: partial(_instead, leave(promoted(own)))}
            outputs.append(self._networks[1](inputs.images, swap))
        return [self._loss(inputs, output) for output in (*outputs, last)]

    def _loss(self, inputs: LossInputs, output: Tensor) -> Tensor:
        assert inputs.teacher is not None, "the trainer runs the teacher for this recipe"
        terms = self.objective.terms(promoted(output), inputs.target, promoted(inputs.teacher))
        return LABEL * terms["hard"] + (1 - LABEL) * terms["soft"]


def _kept(made: dict[str, Tensor], name: str, following: Tensor | None, own: Tensor) -> Tensor:
    made[name] = own
    return own if following is None else following


def _instead(following: Tensor, _own: Tensor) -> Tensor:
    return following
