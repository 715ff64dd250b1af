"""Recipe `ghnd`: the teacher's maps and output, without labels."""

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    WIDE,
    be_identity,
    check_gradients,
    check_learning,
    check_promises,
    drawn,
    ground,
    made,
    own_term,
    squared_errors,
)
from recipe_fixtures import load

from kdcompile.core.errors import KDError
from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.registry import find_recipe


def _errors(recipe, inputs):
    """The squared errors at the taps and of the output."""
    yield from squared_errors(recipe, inputs)
    yield (inputs.student.numpy() - inputs.teacher.numpy()) ** 2


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    inputs, recipe = drawn(shapes), made("ghnd", shapes)
    recipe.scale.copy_(torch.tensor([2.0, 5.0, 0.5]))
    losses = [e.mean() for e in _errors(recipe, inputs)]
    expected = np.mean(np.array(losses) / [2.0, 5.0, 0.5])
    assert own_term(recipe, inputs).item() == pytest.approx(expected, rel=1e-12)
    paper = made("ghnd", shapes, reduction="paper")
    expected = sum(e.sum() for e in _errors(paper, inputs)) / len(inputs.student)
    assert own_term(paper, inputs).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_gradients(reduction):
    check_gradients("ghnd", reduction=reduction)


def test_promises():
    check_promises("ghnd")
    check_learning("ghnd")


def test_a_student_that_is_the_teacher_loses_nothing():
    recipe, inputs = made("ghnd", EQUAL), drawn(EQUAL)
    be_identity(recipe)
    same = LossInputs(
        inputs.teacher, inputs.target, inputs.teacher, inputs.teacher_features,
        inputs.teacher_features,
    )  # fmt: skip
    assert own_term(recipe, same).item() == pytest.approx(0, abs=1e-24)


@pytest.mark.parametrize("kind", ["counting", "classification", "regression"])
def test_labels_and_soft_targets_take_no_part(kind):
    recipe, inputs = made("ghnd", EQUAL, kind=kind), drawn(EQUAL)
    assert list(recipe.terms(inputs)) == list(recipe.weights) == ["ghnd"]
    with pytest.raises(KDError) as error:
        made("ghnd", EQUAL, kind=kind, weights={"hard": 1.0})
    assert error.value.code == "recipe-term"
    assert "ghnd" in error.value.fix


def test_it_leaves_no_label_terms_to_others():
    combined = find_recipe("ghnd+at")
    assert combined.about.name == "ghnd+at"
    recipe, inputs = made("ghnd+at", EQUAL), drawn(EQUAL)
    assert set(recipe.terms(inputs)) == {"ghnd", "at"}


@pytest.mark.parametrize("size", [(3,), (1, 2, 2)])
def test_the_output_is_measured_in_its_own_spread(size):
    """Over many photos: a few may have the same output."""
    images = torch.randn(80, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    asked = []

    def teacher(part):
        asked.append(len(part))
        return 10 * part + 3, []

    recipe, inputs = made("ghnd", WIDE), drawn(WIDE)
    recipe.prepare(ground(teacher, images, batch=5))
    assert sum(asked) == 65, "enough, and no more"
    recipe.fit(inputs)
    spread = images[:65].var(correction=0).item()
    assert recipe.scale[-1].item() == pytest.approx(100 * spread, rel=1e-6)
    expected = [m.movedim(1, 0).flatten(1).var(1, correction=0).mean() for m in
                inputs.teacher_features]  # fmt: skip
    torch.testing.assert_close(recipe.scale[:2], torch.stack(expected))


def test_the_sum_of_torchdistill_goes_over_the_batch_too():
    fixture = load("ghnd")
    case, (differs,) = fixture["cases"]["sum"], fixture["differs"]
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    recipe = made("ghnd", [(student.shape, teacher.shape)], reduction="paper")
    be_identity(recipe)
    output = torch.zeros(len(student), 1, dtype=torch.float64)
    value = own_term(recipe, LossInputs(output, output, output, [student], [teacher]))
    assert value.item() == pytest.approx(case["value"] / len(student), rel=1e-10)
    assert value.item() == pytest.approx(float(differs["expected"]), rel=1e-10)
    (grad,) = torch.autograd.grad(len(student) * value, student)
    torch.testing.assert_close(grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)
