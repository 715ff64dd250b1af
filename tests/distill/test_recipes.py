"""Recipes: their terms, weights and registry."""

import pytest
import torch

from kdcompile.config.spec import Distill
from kdcompile.core.errors import KDError
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.registry import find_recipe, recipes
from kdcompile.distill.taps import Tap
from kdcompile.kernels.adapter_cosine import adapter_cosine
from kdcompile.kernels.gram_relation import gram_relation

TAPS = [Tap("a", "a", 6, 3), Tap("b", "b", 8, 4)]


def _inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    return LossInputs(
        draw(2, 1, 4, 4),
        draw(2, 1, 4, 4).abs(),
        draw(2, 1, 4, 4),
        [draw(2, 3, 8, 8), draw(2, 4, 4, 4)],
        [draw(2, 6, 8, 8).relu(), draw(2, 8, 4, 4).relu()],
    )


def _recipe(name, **options):
    torch.manual_seed(0)
    options = Distill(**options)
    objective = OBJECTIVES["counting"](options, torch.ones(1))
    objective.squared, objective.block = 0.5, 2.0
    return find_recipe(name)(TAPS, options, objective)


def test_registry_finds_every_file():
    assert {"none", "kd", "skt"} <= set(recipes())
    with pytest.raises(KDError) as error:
        find_recipe("sktt")
    assert "'skt'" in error.value.message
    with pytest.raises(KDError) as error:
        find_recipe("kd+skillpack")
    assert "skillpack is kdcompile delta make and apply" in error.value.fix


def test_terms_grow_from_none_to_skt():
    inputs = _inputs()
    terms = [set(_recipe(name).terms(inputs)) for name in ("none", "kd", "skt")]
    assert terms == [
        {"hard", "count"},
        {"hard", "count", "soft"},
        {"hard", "count", "soft", "intra", "inter"},
    ]


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_skt_is_its_kernels(reduction):
    recipe, inputs = _recipe("skt", reduction=reduction), _inputs()
    terms = recipe(inputs)
    losses = [
        adapter_cosine(s, t, a.weight, a.bias, reduction)
        for s, t, a in zip(
            inputs.student_features, inputs.teacher_features, recipe.adapters, strict=True
        )
    ]
    adapted = [
        torch.relu(torch.einsum("oc,nchw->nohw", a.weight, s) + a.bias.view(1, -1, 1, 1))
        for s, a in zip(inputs.student_features, recipe.adapters, strict=True)
    ]
    inter = gram_relation(
        [*adapted, inputs.student], [*inputs.teacher_features, inputs.teacher], reduction
    )
    scale = 0.5 if reduction == "mean" else 1.0
    assert terms["intra"].item() == pytest.approx(sum(v.item() for v in losses) * scale, rel=1e-5)
    assert terms["inter"].item() == pytest.approx(inter.item(), rel=1e-5)


def test_terms_that_are_off_are_not_computed():
    assert "inter" not in _recipe("skt", weights={"inter": 0.0}).terms(_inputs())
    off = _recipe("skt", weights={"inter": 0.0, "intra": 0.0}).terms(_inputs())
    assert set(off) == {"hard", "count", "soft"}


def test_adapters_start_at_the_least_squares_fit():
    """A teacher map that is a linear function of the student's is met exactly."""
    recipe, inputs = _recipe("skt"), _inputs()
    mix = torch.rand(6, 3)
    inputs.teacher_features[0] = torch.einsum("oc,nchw->nohw", mix, inputs.student_features[0]) + 2
    recipe.fit(inputs)
    assert torch.allclose(recipe.adapters[0].weight, mix, atol=2e-2)
    assert torch.allclose(recipe.adapters[0].bias, torch.full((6,), 2.0), atol=2e-2)
    before = _recipe("skt").terms(inputs)["intra"]
    assert recipe.terms(inputs)["intra"] < before


def test_an_adapter_keeps_its_start_where_there_is_nothing_to_fit():
    recipe, inputs = _recipe("skt"), _inputs()
    inputs.student_features[0] = torch.zeros(2, 3, 8, 8)
    inputs.teacher_features[1] = torch.full((2, 8, 4, 4), float("nan"))
    before = [p.clone() for p in recipe.parameters()]
    recipe.fit(inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, recipe.parameters(), strict=True))


def test_weights_are_checked_by_term():
    assert _recipe("kd", weights={"soft": 3.0}).weights == {"hard": 1.0, "count": 1.0, "soft": 3.0}
    paper = {"hard": 1.0, "count": 0.0, "soft": 1.0, "intra": 0.5, "inter": 0.5}
    assert _recipe("skt", reduction="paper").weights == paper
    with pytest.raises(KDError) as error:
        _recipe("kd", weights={"sofd": 3.0})
    assert error.value.code == "recipe-term"


def test_adapters_are_the_recipes_and_learn():
    recipe, inputs = _recipe("skt"), _inputs()
    sum(recipe(inputs).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in recipe.parameters())
    assert len(list(_recipe("kd").parameters())) == 0


def test_labels_are_scaled_by_what_they_are():
    ones, zeros = torch.ones(2, 1, 8, 12), torch.zeros(2, 1, 8, 12)
    inputs = LossInputs(ones, zeros, 2 * ones, [], [])
    found = {
        reduction: _recipe("kd", reduction=reduction).terms(inputs)
        for reduction in ("mean", "paper")
    }
    assert found["mean"]["hard"].item() == found["mean"]["soft"].item() == 2
    assert found["paper"]["hard"].item() == 96
    for terms in found.values():
        assert terms["count"].item() == pytest.approx((64 + 32) / 2 / 2.0)
    assert set(_recipe("none").terms(inputs)) == {"hard", "count"}


def test_the_density_objective_measures_its_labels():
    maps = torch.full((3, 1, 8, 8), 2.0)
    objective = OBJECTIVES["counting"](Distill(), maps)
    assert (objective.squared, objective.block) == (4.0, 128.0)
    empty = OBJECTIVES["counting"](Distill(), torch.zeros(1, 1, 8, 8))
    assert empty.squared > 0 < empty.block


def test_classes_have_cross_entropy_and_softened_kl():
    """Against float64 and the textbook's formula."""
    torch.manual_seed(0)
    student, teacher, target = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    options = Distill(temperature=3.0)
    terms = OBJECTIVES["classification"](options, target).terms(student, target, teacher)
    log_p = (student.double() / 3).log_softmax(1)
    q = (teacher.double() / 3).softmax(1)
    soft = 9 * (q * (q.log() - log_p)).sum(1).mean()
    hard = -student.double().log_softmax(1)[torch.arange(5), target].mean()
    assert terms["soft"].item() == pytest.approx(soft.item(), rel=1e-5)
    assert terms["hard"].item() == pytest.approx(hard.item(), rel=1e-5)
    same = OBJECTIVES["classification"](options, target).terms(teacher, target, teacher)
    assert same["soft"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("hard", "power"), [("l1", 1), ("l2", 2)])
def test_values_are_measured_in_deviations_of_the_labels(hard, power):
    labels = torch.tensor([[10.0], [30.0]])  # deviation 10
    objective = OBJECTIVES["regression"](Distill(hard=hard), labels)
    terms = objective.terms(labels + 20, labels, labels - 10)
    assert terms["hard"].item() == pytest.approx(2.0**power)
    assert terms["soft"].item() == pytest.approx(3.0**power)
    constant = OBJECTIVES["regression"](Distill(), torch.ones(4, 1))
    assert constant.terms(torch.zeros(4, 1), torch.ones(4, 1), None)["hard"].item() == 1


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("name", ["none", "kd"])
def test_every_task_has_the_weights_of_its_terms(kind, name):
    output, target = {
        "counting": (torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)),
        "classification": (torch.rand(2, 3), torch.tensor([0, 2])),
        "regression": (torch.rand(2, 1), torch.rand(2, 1)),
        "generic": (torch.rand(2, 5), torch.rand(2, 2, 5)),
        "segmentation": (torch.rand(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)),
        "detection": (torch.rand(2, 7, 4, 4), torch.rand(2, 1, 6)),
    }[kind]
    recipe = find_recipe(name)([], Distill(), OBJECTIVES[kind](Distill(), target))
    terms = recipe.terms(LossInputs(output, target, output + 1, [], []))
    assert set(terms) == set(recipe.weights)
    assert ("soft" in terms) == (name == "kd" and kind != "generic")


def test_a_recipe_refuses_a_task_that_it_is_not_made_for():
    objective = OBJECTIVES["regression"](Distill(), torch.rand(4, 1))
    with pytest.raises(KDError) as error:
        find_recipe("skt")(TAPS, Distill(), objective)
    assert error.value.code == "recipe-task"
    assert "kd" in error.value.fix
