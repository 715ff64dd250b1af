"""Recipe `auto`: the recipe that a short pilot on validation images chooses."""

from kdcompile.distill.recipe import About, Recipe


class Chosen(Recipe):
    """Labels and soft targets where nothing chooses, as in the short trainings of a search."""

    about = About(
        name="auto",
        summary="what a short pilot on validation images chooses: none, kd, or feature maps",
        formula="that of the recipe that is chosen",
        source="successive halving (Jamieson and Talwalkar, 2016, arXiv 1502.07943)",
        cost="the recipe that is chosen + a pilot of at most 15 % of the training",
        evidence="tests/distill/test_pilot.py; no benchmark yet",
    )
