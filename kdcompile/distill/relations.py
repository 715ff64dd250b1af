"""Recipes that compare images with each other: how much they weigh."""

from kdcompile.config.distill import Ramp
from kdcompile.distill.objective import Objective
from kdcompile.distill.recipe import Recipe

DENSE = 0.1  # of a weight where cells are predicted: benchmarks/recipes.py, counting


class RelationRecipe(Recipe):
    """A recipe whose own terms weigh a tenth where the task is dense.

    Two images of crowds are hardly a pair, and a count hangs on where things are, of which the
    relations of pooled maps know nothing. `extra_weights` are those of the other tasks.
    """

    needs_taps = True

    @classmethod
    def defaults(
        cls, objective: Objective | type[Objective], reduction: str
    ) -> dict[str, float | Ramp]:
        """Under "paper" as published, whatever the task."""
        found = super().defaults(objective, reduction)
        if objective.is_dense and reduction == "mean":
            own = cls.extra_weights["mean"]
            found |= {name: DENSE * w for name, w in own.items() if isinstance(w, int | float)}
        return found
