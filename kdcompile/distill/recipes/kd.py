"""Recipe `kd`: the labels and the teacher's output."""

from kdcompile.distill.recipe import About, Recipe


class OutputTransfer(Recipe):
    """The label terms and the objective's soft term against the teacher's output."""

    about = About(
        name="kd",
        summary="labels and the teacher's output (soft targets)",
        formula="none + soft: softened KL for classes, the label loss against T elsewhere",
        source="Hinton et al., 2015; for densities SKT's soft ground truth (ACM MM 2020)",
        cost="none + teacher forward",
        evidence="the loss against a float64 computation; benchmarks/README.md for cifar10",
    )
