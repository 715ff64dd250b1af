"""Recipe `near`: the label terms, and the distance of the student's output from the teacher's."""

from typing import ClassVar

from kdcompile.distill.recipe import About, Recipe


class Near(Recipe):
    """The mean distance from the teacher, as a term of its own in place of the soft one."""

    about = About(
        name="near",
        summary="the teacher's output by its mean distance",
        formula="near |S - T|",
        source="Acme",
        cost="nothing",
        evidence="none",
    )
    extra_weights: ClassVar = {"mean": {"near": 1.0}, "paper": {"near": 1.0}}
    replaces_soft = True

    def extra(self, inputs):
        """`near`."""
        return {"near": (inputs.student - inputs.teacher).abs().mean()}
