"""Recipe `ft`: factors of the teacher's last map."""

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    SMALL,
    WIDE,
    check_gradients,
    check_learning,
    check_promises,
    convolved,
    drawn,
    ground,
    made,
    own_term,
)
from recipe_fixtures import load
from torch.nn import functional

from kdcompile.distill.maps import direction
from kdcompile.distill.recipes.ft import distance


def _factor(layers, maps):
    """Two convolutions with a leaky rectifier between, a unit vector an image."""
    hidden = convolved(layers[0], maps.numpy())
    factor = convolved(layers[2], np.where(hidden > 0, hidden, 0.1 * hidden))
    return [f.ravel() / np.linalg.norm(f) for f in factor]


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    recipe, inputs = made("ft", shapes), drawn(shapes)
    own = _factor(recipe.translator, inputs.student_features[-1])
    theirs = _factor(recipe.paraphraser, inputs.teacher_features[-1])
    gaps = [s - t for s, t in zip(own, theirs, strict=True)]
    expected = np.mean([np.linalg.norm(gap) for gap in gaps])
    assert own_term(recipe, inputs).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    paper = made("ft", shapes, reduction="paper")
    expected = np.mean([np.abs(gap).mean() for gap in gaps])
    assert own_term(paper, inputs).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert paper.weights["ft"] == 200


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_gradients(reduction):
    check_gradients("ft", reduction=reduction)


def test_promises():
    check_promises("ft")
    check_learning("ft")


def _looking(shapes):
    """The last maps of a teacher for 12 images, all from two patterns, and what `learn` sees."""
    channels, *size = shapes[-1][1][1:]
    random = torch.Generator().manual_seed(3)
    images = torch.randn(12, 2, *size, generator=random, dtype=torch.float64)
    mix = torch.randn(channels, 2, generator=random, dtype=torch.float64)

    def teacher(part):
        return torch.zeros(len(part), 1), [part, 50 * torch.einsum("oc,nchw->nohw", mix, part)]

    return teacher(images)[1][-1], ground(teacher, images)


def _unexplained(recipe, maps):
    """The share of the maps' variance that no 3x3 convolution of the factors explains."""
    factors = functional.unfold(recipe.paraphraser(maps), 3, padding=1).mT.flatten(0, 1)
    target = maps.flatten(2).mT.flatten(0, 1)
    known = torch.cat([factors, torch.ones_like(factors[:, :1])], dim=1)
    left = target - known @ torch.linalg.lstsq(known, target).solution
    return float(left.var(0).sum() / target.var(0).sum())


def test_the_paraphraser_learns_to_keep_the_map():
    maps, photos = _looking(WIDE[:1])
    recipe = made("ft", WIDE[:1])
    before = _unexplained(recipe, maps)
    torch.manual_seed(1)
    recipe.learn(photos)
    assert _unexplained(recipe, maps) < 0.5 * before


def test_learning_repeats_itself_and_freezes():
    _, photos = _looking(SMALL)
    states = []
    for _ in range(2):
        recipe = made("ft", SMALL)
        places = [b.data_ptr() for b in recipe.buffers()]
        torch.manual_seed(1)
        recipe.learn(photos)
        assert places == [b.data_ptr() for b in recipe.buffers()], "changed in place"
        states.append(recipe.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    learnt = dict(recipe.named_parameters())
    assert learnt
    assert not any("paraphraser" in name for name in learnt)
    assert any("paraphraser" in name for name in states[0]), "a checkpoint keeps it"
    fresh = made("ft", SMALL)
    fresh.load_state_dict(states[0])
    inputs = drawn(SMALL)
    assert own_term(fresh, inputs).item() == own_term(recipe, inputs).item()


def test_maps_in_other_units_have_the_same_factors():
    """Up to rounding: the auto-encoder learns maps over their deviation."""
    values = []
    for unit in (1.0, 1e-4):
        _, photos = _looking(WIDE)
        look = photos.look
        photos.look = lambda part, look=look, unit=unit: (None, [m * unit for m in look(part)[1]])
        recipe, inputs = made("ft", WIDE), drawn(WIDE)
        torch.manual_seed(1)
        recipe.learn(photos)
        inputs.teacher_features[-1] = inputs.teacher_features[-1] * unit
        values.append(own_term(recipe, inputs).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_equal_factors_lose_nothing():
    recipe, inputs = made("ft", [((2, 3, 4, 4), (2, 3, 4, 4))]), drawn([((2, 3, 4, 4),) * 2])
    recipe.translator.load_state_dict(recipe.paraphraser.state_dict())
    inputs.student_features[0] = inputs.teacher_features[0].clone().requires_grad_()
    value = own_term(recipe, inputs)
    assert value.item() == 0
    value.backward()
    assert inputs.student_features[0].grad.isfinite().all()


@pytest.mark.parametrize(("name", "power"), [("p1", 1), ("p2", 2)])
def test_parity_with_torchdistill(name, power):
    case = load("ft")["cases"][name]
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    value = distance(direction(student.flatten(1), 1), direction(teacher.flatten(1), 1), power)
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_factor_of_zeros_is_no_nan(side, power):
    """torchdistill divides by its length."""
    fixture = load("ft")
    differs = next(
        d
        for d in fixture["differs"]
        if d["what"].startswith(f"{side} factor 1 all zero, p={power}")
    )
    factors = {n: fixture["cases"]["p1"]["inputs"][n].clone() for n in ("student", "teacher")}
    factors[side][1] = 0
    factors["student"].requires_grad_()
    own, theirs = (direction(factors[n].flatten(1), 1) for n in ("student", "teacher"))
    value = distance(own, theirs, power)
    assert value.item() == pytest.approx(float(differs["expected"]), rel=1e-10)
    value.backward()
    assert factors["student"].grad.isfinite().all()
    assert str(differs["theirs"]) == "nan"
