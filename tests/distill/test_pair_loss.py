"""Imitation of heads of boxes and scores, and what trains them without labels."""

import pytest
import torch

from kdcompile.config.detection import Head
from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.distill.box_objective import BoxObjective
from kdcompile.distill.pair_loss import pair_imitation
from kdcompile.tasks.detection.task import Detection

FORMS = {
    "softmax": Head(scores="softmax", background="first", boxes="centre"),
    "sigmoid": Head(scores="sigmoid", boxes="centre"),
    "probabilities": Head(boxes="centre"),
}
NONE = torch.zeros(1, 1, 6)


def rows(form: str, sure: float = 0.9, x: float = 10, other: float = 5) -> torch.Tensor:
    """Six rows of two classes, of which the third is sure of the second class."""
    scores = torch.full((1, 6, 2), 0.01)
    scores[0, 2, 1] = sure
    if form == "softmax":
        scores = torch.cat([1 - scores.sum(2, keepdim=True), scores], 2).log()
    elif form == "sigmoid":
        scores = scores.logit()
    boxes = torch.full((1, 6, 4), 8.0)
    boxes[0, 2, 0], boxes[0, 4, 0] = x, other
    return torch.cat([boxes, scores], 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of_anchors", [True, False])
def test_what_the_teacher_is_sure_of_counts(form, of_anchors):
    def loss(student):
        return float(pair_imitation(student, rows(form), FORMS[form], of_anchors))

    assert loss(rows(form)) == pytest.approx(0, abs=1e-6)
    assert loss(rows(form, sure=0.3)) > 0.05
    moved = loss(rows(form, x=14))
    unit = 0.1 if of_anchors else 1 / 8
    assert moved == pytest.approx(4 * unit / 4, rel=0.02)
    assert loss(rows(form, other=9)) < moved / 100
    invented = rows(form)
    invented[0, 5] = rows(form)[0, 2]
    assert loss(invented) > 0.2


def test_the_unit_of_shares_is_the_box():
    head = Head(boxes="corners", unit="share")
    teacher = torch.tensor([[[0.2, 0.2, 0.4, 0.6, 1.0]]])
    student = teacher + torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0])
    assert float(pair_imitation(student, teacher, head, False)) == pytest.approx(0.5 / 4)


@pytest.mark.parametrize("form", FORMS)
def test_a_student_is_trained_by_its_teacher_alone(form):
    objective = BoxObjective(Distill(), torch.zeros(1, 1, 6))
    objective.learn(Detection(FORMS[form], "ssd"), [])
    teacher = rows(form)
    student = torch.nn.Parameter(rows(form, sure=0.2, x=16))
    optimizer = torch.optim.Adam([student], 0.1)

    def soft():
        terms = objective.terms(student, NONE, teacher)
        assert set(terms) == {"soft"}
        return terms["soft"]

    first = soft().item()
    for _ in range(60):
        optimizer.zero_grad()
        soft().backward()
        optimizer.step()
    assert soft().item() < first / 10


def test_labels_without_a_loss_are_no_term_but_with_one_they_are():
    objective = BoxObjective(Distill(), torch.zeros(1, 1, 6))
    student = rows("sigmoid").requires_grad_()
    objective.learn(Detection(FORMS["sigmoid"], "ssd"), [])
    assert objective.hard(student, NONE).requires_grad  # that a gradient comes back is seen
    with pytest.raises(KDError) as caught:
        objective.terms(student, NONE, None)
    assert caught.value.code == "task-loss"
    own = Detection(FORMS["sigmoid"], "ssd", loss=(lambda o, b: o.mean() * 0 + 3, "own.py:loss"))
    objective.learn(own, [])
    assert float(objective.terms(student, NONE, student.detach())["hard"].detach()) == 3
    assert own.has_label_loss((1, 6, 6))
    assert not Detection(FORMS["sigmoid"], "ssd").has_label_loss((1, 6, 6))
    assert Detection().has_label_loss((1, 6, 16, 16))
