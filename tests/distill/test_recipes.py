"""Recipes: their terms, weights and registry."""

import pytest
import torch

from kdcompile.distill.counting import constant_mae, mae_rmse
from kdcompile.distill.recipe import LossInputs, find_recipe, recipes
from kdcompile.distill.taps import Tap
from kdcompile.errors import KDError
from kdcompile.kernels.adapter_cosine import adapter_cosine
from kdcompile.kernels.gram_relation import gram_relation
from kdcompile.spec import Distill

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
    return find_recipe(name)(TAPS, Distill(**options), (0.5, 2.0))


def test_registry_finds_every_file():
    assert {"none", "kd", "skt"} <= set(recipes())
    with pytest.raises(KDError) as error:
        find_recipe("sktt")
    assert "'skt'" in error.value.message


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
    total, terms = recipe(inputs)
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
    expected = sum(recipe.weights[n] * v.item() for n, v in terms.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_without_relations_the_term_is_not_computed():
    assert "inter" not in _recipe("skt", weights={"inter": 0.0}).terms(_inputs())


def test_weights_are_checked_by_term():
    assert _recipe("kd", weights={"soft": 3.0}).weights == {"hard": 1.0, "count": 1.0, "soft": 3.0}
    paper = {"hard": 1.0, "count": 0.0, "soft": 1.0, "intra": 0.5, "inter": 0.5}
    assert _recipe("skt", reduction="paper").weights == paper
    with pytest.raises(KDError) as error:
        _recipe("kd", weights={"sofd": 3.0})
    assert error.value.code == "recipe-term"


def test_adapters_are_the_recipes_and_learn():
    recipe, inputs = _recipe("skt"), _inputs()
    recipe(inputs)[0].backward()
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


def test_metrics():
    assert mae_rmse([1.0, 5.0], [2.0, 2.0]) == (2.0, pytest.approx(5**0.5))
    assert constant_mae([0.0, 1.0, 50.0], [2.0, 0.0]) == 1.0
