"""Intra-PT against a float64 computation written from the formula."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from kdcompile.kernels.adapter_cosine import adapter_cosine

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (3, 16, 9, 1, 31), (1, 8, 13, 11, 8)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def _inputs(shape, dtype=torch.float32, seed=0):
    batch, narrow, height, width, wide = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    student, teacher = draw(batch, narrow, height, width), draw(batch, wide, height, width).relu()
    weight, bias = draw(wide, narrow) / narrow**0.5, draw(wide).abs()
    return [t.to(dtype) for t in (student, teacher, weight, bias)]


def _oracle(student, teacher, weight, bias, reduction):
    student, teacher, weight, bias = (t.double() for t in (student, teacher, weight, bias))
    adapted = torch.relu(torch.einsum("oc,nchw->nohw", weight, student) + bias.view(1, -1, 1, 1))
    distance = 1 - cosine_similarity(adapted, teacher, dim=1, eps=1e-12)
    distance = torch.where(teacher.abs().sum(1) * adapted.abs().sum(1) > 0, distance, 1.0)
    return distance.mean() if reduction == "mean" else distance.sum() / len(distance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_value_and_gradients(shape, dtype, reduction):
    student, teacher, weight, bias = _inputs(shape, dtype)
    bias = bias.float()
    leaves = [t.requires_grad_() for t in (student, weight, bias)]
    loss = adapter_cosine(student, teacher, weight, bias, reduction)
    wide = [t.detach().double().requires_grad_() for t in (student, weight, bias)]
    expected = _oracle(wide[0], teacher, wide[1], wide[2], reduction)
    found = torch.autograd.grad(3.7 * loss, leaves)
    truth = torch.autograd.grad(3.7 * expected, wide)
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype], abs=1e-5)
    for a, b in zip(found, truth, strict=True):
        scale = b.norm().clamp_min(1e-3)
        assert float((a.double() - b).norm() / scale) < 10 * TOLERANCE[dtype]


def test_scale_of_the_features_does_not_matter():
    student, teacher, _, _ = _inputs((2, 6, 5, 4, 6))
    loss = adapter_cosine(student, teacher)
    assert float(adapter_cosine(7 * student, 0.2 * teacher)) == pytest.approx(loss.item(), rel=1e-5)


def test_equal_maps_have_no_loss_and_zero_maps_a_whole_one():
    _, teacher, _, _ = _inputs((2, 6, 5, 4, 6))
    positive = teacher + 0.1
    assert float(adapter_cosine(positive, positive)) == pytest.approx(0.0, abs=1e-6)
    zeros = torch.zeros_like(teacher, requires_grad=True)
    loss = adapter_cosine(zeros, teacher)
    assert float(loss.detach()) == pytest.approx(1.0)
    loss.backward()
    assert torch.isfinite(zeros.grad).all()


def test_channels_last_gives_the_same():
    inputs = _inputs((2, 3, 5, 7, 4))
    last = [t.contiguous(memory_format=torch.channels_last) for t in inputs[:2]]
    assert float(adapter_cosine(*last, *inputs[2:])) == pytest.approx(
        float(adapter_cosine(*inputs))
    )


def test_paper_reduction_is_the_mean_of_single_images():
    student, teacher, weight, bias = _inputs((3, 3, 5, 7, 4))
    whole = adapter_cosine(student, teacher, weight, bias, "paper")
    single = [
        float(adapter_cosine(student[i : i + 1], teacher[i : i + 1], weight, bias, "paper"))
        for i in range(3)
    ]
    assert float(whole) == pytest.approx(sum(single) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "weight", "problem"),
    [
        ((1, 3, 4, 4), (1, 3, 4, 5), None, "maps differ"),
        ((1, 3, 4, 4), (1, 5, 4, 4), None, "need an adapter"),
        ((1, 3, 4, 4), (1, 5, 4, 4), (3, 5), "adapter is"),
    ],
)
def test_maps_that_do_not_fit(student, teacher, weight, problem):
    weight = None if weight is None else torch.ones(weight)
    with pytest.raises(ValueError, match=problem):
        adapter_cosine(torch.ones(student), torch.ones(teacher), weight)
