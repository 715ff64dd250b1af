"""Recipe `kd`: the labels and the teacher's output."""

from collections.abc import Mapping
from typing import ClassVar

from kdcompile.distill.recipe import About
from kdcompile.distill.recipes.none import Labels


class OutputTransfer(Labels):
    """The labels' terms and the squared error to the teacher's density."""

    about = About(
        name="kd",
        summary="labels and the teacher's output (soft targets)",
        formula="none + soft * |S - T|^2",
        source="Hinton et al., 2015, for regression; SKT's soft ground truth (ACM MM 2020)",
        cost="none + teacher forward",
        evidence="the loss against a float64 computation",
    )
    default_weights: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "mean": {"hard": 1.0, "count": 1.0, "soft": 4.0},
        "paper": {"hard": 1.0, "count": 0.0, "soft": 1.0},
    }
    needs_teacher = True
