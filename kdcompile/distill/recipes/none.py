"""Recipe `none`: the labels alone, the baseline of every other."""

from kdcompile.distill.recipe import About, Recipe


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
    widens = True
