"""Recipe `nd`: norm and direction of the features (KD++, Wang et al., 2023, arXiv 2305.17007)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.distill.embedding import embedding, embeddings, in_one_type
from kdcompile.distill.maps import fit_adapter
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe, RecipeContext
from kdcompile.distill.taps import Tap
from kdcompile.kernels._runtime import full_precision
from kdcompile.kernels.norm_direction import norm_direction


class NormDirection(Recipe):
    """Student features along the class's mean of the teacher's, and no shorter than the teacher's.

    Features are the last tap's means over pixels. A student of another width has an adapter. The
    class means are over one unaugmented crop of every photo.
    """

    about = About(
        name="nd",
        summary="long features along the teacher's mean of their class, beside soft targets",
        formula="kd + nd * mean (1 - <f_S, e_y> / max(|f_S|, |f_T|)), e_y the direction of the"
        " teacher's mean feature of the label's class, f the last tap's mean over pixels."
        " Published with 1 CE + 1 KL + 2 nd, the KL growing over 20 epochs; here soft is the"
        " task's own, and a ramp in [distill.weights] makes it grow",
        source="Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and"
        " Direction, 2023, 2305.17007",
        cost="kd + a mean over the last tap's maps; once a pass of the teacher over the photos",
    )
    extra_weights: ClassVar[ByReduction] = {"mean": {"nd": 1.0}, "paper": {"nd": 0.2}}
    needs_taps = True
    reads_labels = True
    tasks = ("classification",)
    why = "it needs the mean feature of each class"
    means: Tensor

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """The adapter, where the widths of the last tap differ."""
        super().__init__(taps, options, objective)
        self.width, own = taps[-1].teacher_channels, taps[-1].student_channels
        self.adapter = nn.Linear(own, self.width) if own != self.width else None

    def prepare(self, context: RecipeContext) -> None:
        """Room for the class means [K, d]: the teacher's output says how many."""
        output, _ = context.look(next(iter(context.crops())).images)
        self.register_buffer("means", output.new_zeros(output.shape[1], self.width).float())

    def fit(self, inputs: LossInputs) -> None:
        """The adapter by least squares."""
        if self.adapter is not None:
            fit_adapter(self.adapter, inputs.student_features[-1], inputs.teacher_features[-1])

    def learn(self, context: RecipeContext) -> None:
        """The class means.

        Raises:
            KDError: `recipe-needs`, a class has none.
        """
        sums = torch.zeros_like(self.means, dtype=torch.float64)
        counts = sums.new_zeros(len(sums))
        classes = torch.arange(len(sums), device=sums.device)
        for batch in context.crops():
            _, maps = context.look(batch.images)
            members = (classes.unsqueeze(1) == batch.target).double()
            sums += members @ embedding(maps[-1]).double()
            counts += members.sum(1)
        self._refuse_missing(sums, counts)
        self.means.copy_(sums / counts.unsqueeze(1))

    @classmethod
    def refuse_labels(cls, labels: Sequence[float], classes: int | None) -> None:
        """Classes without an image."""
        absent = sorted(set(range(classes or 0)) - set(map(int, labels)))
        if absent:
            fix = "add images of them to data.train, or use recipe kd"
            raise _meanless("an image", absent, fix)

    def _refuse_missing(self, sums: Tensor, counts: Tensor) -> None:
        self.refuse_labels(counts.nonzero().flatten().tolist(), len(counts))
        without = (~(sums.norm(dim=1) > 0)).nonzero().flatten().tolist()
        if without:
            fix = "name another last tap in distill.taps, or use recipe kd"
            raise _meanless("a mean other than zero", without, fix)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`nd`."""
        with full_precision(inputs.student):
            student, teacher = embeddings(inputs)
            if self.adapter is not None:
                student = self.adapter(student)
            student, teacher = in_one_type(student, teacher)
            return {"nd": norm_direction(student, teacher, self.means, inputs.target)}


def _meanless(what: str, classes: Sequence[int], fix: str) -> KDError:
    shown = ", ".join(map(str, classes[:5])) + " and more" * (len(classes) > 5)
    return KDError(
        "recipe-needs",
        "recipe nd needs the teacher's mean feature of every class:"
        f" classes without {what}: {shown}",
        where="[distill] recipe",
        fix=fix,
    )
