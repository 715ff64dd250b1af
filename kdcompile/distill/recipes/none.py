"""Recipe `none`: the labels alone, the baseline of every other."""

from torch import Tensor

from kdcompile.distill.recipe import About, LossInputs, Recipe


class Labels(Recipe):
    """The objective's label terms."""

    about = About(
        name="none",
        summary="train on the labels only; the baseline",
        formula="the task's label terms",
        source="counting: density regression as in CSRNet (Li et al., CVPR 2018)",
        cost="student forward and backward",
        evidence="the reference of benchmarks/digits.py",
    )
    needs_teacher = False

    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The label terms; and `soft` where the recipe has the teacher run."""
        teacher = inputs.teacher if self.needs_teacher else None
        return self.objective.terms(inputs.student, inputs.target, teacher)
