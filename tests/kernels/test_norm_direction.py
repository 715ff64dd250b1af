"""The norm and direction loss against a float64 computation written from the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check_autocast, check_compiled, check_kernel, loss_and_gradients

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.norm_direction import CONFIGS, norm_direction, norm_direction_reference

SHAPES = [(1, 1), (1, 2), (5, 7), (3, 257), (33, 64), (8, 1030)]


def _draw(shape, dtype=torch.float32, device="cpu", seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=generator)).to(dtype).to(device)


def _inputs(shape, dtype, device, classes=4, seed=0, stretch=1.0):
    """Student, teacher, means and labels; about half of the students are longer at stretch 1."""
    student, teacher = (_draw(shape, dtype, device, seed + i) for i in range(2))
    means = _draw((classes, shape[1]), dtype, device, seed + 2, 0.3)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, shape[:1], generator=generator).to(device)
    return (student * stretch).to(dtype), teacher, means, labels


def _oracle(student, teacher, means, labels):
    rows = []
    for f, g, y in zip(student, teacher.double(), labels.tolist(), strict=True):
        if not 0 <= y < len(means):
            rows.append(0 * f.sum())
            continue
        c = means[y].double()
        size = torch.maximum(f.norm(), g.norm())
        rows.append(1 - (f * c).sum() / c.norm() / size)
    return torch.stack(rows).mean()


def _check(inputs):
    student, *rest = inputs
    # the loss is 1 minus cosines, which float32 holds to its own rounding of 1
    check_kernel(
        lambda s: norm_direction(s, *rest), lambda s: _oracle(s, *rest), [student], size=0.1
    )


@pytest.mark.parametrize("stretch", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(shape, stretch, dtype, device):
    _check(_inputs(shape, dtype, device, stretch=stretch))


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check(_inputs((19, 300), torch.float32, device))


@settings(max_examples=25)
@given(
    rows=st.integers(1, 40), width=st.integers(1, 300), classes=st.integers(1, 9),
    stretch=st.floats(0.1, 10), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(rows, width, classes, stretch, seed):
    _check(_inputs((rows, width), torch.float32, "cpu", classes, seed, stretch))


def test_labels_without_a_class(device):
    student, teacher, means, labels = _inputs((9, 12), torch.float32, device)
    labels[::2] = torch.tensor([-1, 4, 2**40, -(2**40), 100], device=device)
    _check((student, teacher, means, labels))
    with using("triton"):
        _, (grad,) = loss_and_gradients(
            lambda s: norm_direction(s, teacher, means, labels), [student]
        )
    assert not grad[::2].any()
    assert grad[1::2].any(1).all()


def test_means_of_another_type(device):
    student, teacher, means, labels = _inputs((6, 40), torch.float16, device)
    _check((student, teacher, means.float(), labels))


def test_strided_inputs(device):
    student, teacher, means, labels = _inputs((14, 10), torch.float32, device)
    views = (teacher[::2, 1:9], means[:, 2:], labels[1::2])
    _check((student[::2, 1:9].contiguous(), *views))


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_ties_and_zeros(choice, device):
    """Equal lengths pull along the class mean; zeros have loss 1 and finite gradients."""
    means = torch.tensor([[3.0, 4.0], [0.0, 0.0]], device=device)
    root = 5**0.5
    for student, teacher, label, value, gradient in [
        ((1.0, 2.0), (2.0, 1.0), 0, 1 - 2.2 / root, (-0.6 / root, -0.8 / root)),
        ((0.0, 0.0), (2.0, 0.0), 0, 1, (-0.3, -0.4)),
        ((0.0, 0.0), (0.0, 0.0), 0, 1, (0, 0)),
        ((1.0, 2.0), (2.0, 1.0), 1, 1, (0, 0)),
        ((1.0, 2.0), (0.0, 0.0), 1, 1, (0, 0)),
    ]:
        rows = [torch.tensor([row], device=device) for row in (student, teacher, label)]
        with using(choice):
            own = rows[0].requires_grad_()
            loss = norm_direction(own, rows[1], means, rows[2])
            loss.backward()
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert own.grad[0].tolist() == pytest.approx(gradient, rel=1e-6)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_small_large_and_no_rows(choice, device):
    _, teacher, means, labels = _inputs((3, 4), torch.float32, device)
    with using(choice):
        for size in (1e-15, 1e15):
            value, (grad,) = loss_and_gradients(
                lambda s, size=size: norm_direction(s, teacher * size, means / size, labels),
                [2 * size * teacher.roll(1)],
            )
            assert torch.isfinite(value)
            assert torch.isfinite(grad).all()
            assert grad.any()
        value, (grad,) = loss_and_gradients(
            lambda s: norm_direction(s, teacher[:0], means, labels[:0]), [teacher[:0]]
        )
        assert float(value) == 0
        assert grad.shape == (0, 4)


@pytest.mark.parametrize("stretch", [0.2, 5.0])
def test_gradcheck_of_the_reference(stretch):
    student, teacher, means, labels = _inputs((5, 3), torch.float64, "cpu", stretch=stretch)
    labels[0] = -1
    assert torch.autograd.gradcheck(
        lambda s: norm_direction_reference(s, teacher, means, labels), student.requires_grad_()
    )


def test_compiled_autocast_and_twice(device):
    student, *rest = _inputs((11, 30), torch.float32, device)
    for check in (check_compiled, check_autocast):
        check(lambda s: norm_direction(s, *rest), [student])
    with using("triton"):
        once, twice = (
            loss_and_gradients(lambda s: norm_direction(s, *rest), [student]) for _ in range(2)
        )
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1][0], twice[1][0])


ROWS, MEANS, LABELS = torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((ROWS, ROWS[:1], MEANS, LABELS), r"student \(2, 3\), teacher \(1, 3\)"),
        ((ROWS[0], ROWS[0], MEANS, LABELS), r"student \(3,\), teacher \(3,\)"),
        ((ROWS, ROWS.half(), MEANS, LABELS), "student torch.float32, teacher torch.float16"),
        ((ROWS, ROWS.clone().requires_grad_(), MEANS, LABELS), "require a gradient"),
        ((ROWS, ROWS, MEANS[:, :2], LABELS), r"means are \(4, 2\), .* \(2, 3\) need"),
        ((ROWS, ROWS, MEANS[:0], LABELS), r"means are \(0, 3\), .* \(2, 3\) need"),
        ((ROWS, ROWS, MEANS, LABELS[:1]), r"labels are \(1,\), .* \(2, 3\) need \[2\]"),
        ((ROWS, ROWS, MEANS, LABELS.int()), "labels are torch.int32"),
        ((ROWS, ROWS, MEANS.long(), LABELS), "means are torch.int64"),
        ((ROWS, ROWS, MEANS.clone().requires_grad_(), LABELS), "means are .* with a gradient"),
        ((ROWS, ROWS, MEANS, LABELS.to("meta")), "student on cpu, labels on meta"),
        ((ROWS, ROWS, MEANS, LABELS - 1), "labels run from -1 to 2, the means have 4"),
        ((ROWS, ROWS, MEANS[:3], LABELS), "labels run from 0 to 3, the means have 3"),
        ((ROWS / 0, ROWS, MEANS, LABELS), "student 6 of 6, teacher 0 of 6"),
        ((ROWS, ROWS, MEANS / 0, LABELS), r"means \(4, 3\) hold values"),
    ],
)
def test_what_does_not_fit(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        norm_direction(*arguments, check=True)
