"""Recipes that compare images refuse batches of too few, before anything is spent."""

import pytest

from kdcompile.core.errors import KDError
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.registry import find_recipe, refuse_recipes


@pytest.mark.parametrize(("name", "least"), {"pkt": 2, "spkd": 2, "cckd": 2, "rkd": 3}.items())
def test_batches_of_too_few_images_are_refused(spec, name, least):
    for batch in range(1, least):
        with pytest.raises(KDError) as error:
            refuse_recipes(spec(f"distill.recipe={name}", f"distill.batch={batch}"))
        assert error.value.code == "recipe-needs"
        assert f"at least {least} images" in error.value.message
        assert f"{least} or more" in error.value.fix
    refuse_recipes(spec(f"distill.recipe={name}", f"distill.batch={least}"))


def test_the_batch_of_a_stage_counts(spec):
    stages = '[[distill.stages]]\nname = "one"\nshare = 1.0\nbatch = 1\n'
    with pytest.raises(KDError) as error:
        refuse_recipes(spec("distill.recipe=pkt+skt", more=stages))
    assert "every stage" in error.value.fix
    refuse_recipes(spec("distill.recipe=trg", more=stages))


@pytest.mark.parametrize("name", ["pkt", "cckd", "rkd", "spkd"])
def test_relations_weigh_less_where_cells_are_predicted(name):
    kind = find_recipe(name)
    counting, classes = OBJECTIVES["counting"], OBJECTIVES["classification"]
    for term, weight in kind.extra_weights["mean"].items():
        assert kind.defaults(classes, "mean")[term] == weight
        assert kind.defaults(counting, "mean")[term] == pytest.approx(weight / 10)
        assert kind.defaults(counting, "paper")[term] == kind.extra_weights["paper"][term]
