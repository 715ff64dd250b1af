"""Softened KL against a float64 computation written from the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    check_autocast,
    check_compiled,
    check_kernel,
    in_types,
    loss_and_gradients,
)

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.kd_kl import CONFIGS, kd_kl, kd_kl_reference

ROWS = [(1, 1), (1, 2), (3, 10), (41, 127), (8, 1000), (65, 33)]
DENSE = [(2, 5, 3, 7), (1, 3, 1, 1), (3, 1, 4, 4), (2, 33, 9, 5)]


def _draw(shape, dtype, device="cpu", seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=generator)).to(dtype).to(device)


def _oracle(student, teacher, temperature=1.0, weight=None, classes=None, index=None,
            standardize=False, reverse=False):  # fmt: skip
    lo, hi = classes or (0, student.shape[1])
    rows = student.movedim(1, -1).reshape(-1, student.shape[1])
    if index is not None:
        stacked = [t.movedim(1, -1).reshape(-1, student.shape[1]) for t in teacher]
        theirs = torch.stack([stacked[m][r] for r, m in enumerate(index.tolist())])
    else:
        theirs = teacher.movedim(1, -1).reshape(-1, student.shape[1])
    total = student.new_zeros(())
    for r in range(len(rows)):
        s, t = rows[r, lo:hi], theirs[r, lo:hi]
        if standardize and hi - lo > 1:
            s, t = s / s.std().clamp_min(1e-6), t / t.std().clamp_min(1e-6)
        elif standardize:
            s, t = s * 0, t * 0
        p, q = torch.softmax(s / temperature, 0), torch.softmax(t / temperature, 0)
        a, b = (p, q) if reverse else (q, p)
        seen = a > 0
        kl = (a[seen] * (a[seen].log() - b[seen].log())).sum()
        total = total + (1.0 if weight is None else weight[r].double()) * kl
    return temperature**2 * total / len(rows)


def _check(shape, dtype, device, last=False, teachers=0, **options):
    student = _draw(shape, dtype, device, 1)
    teacher = _draw((teachers, *shape) if teachers else shape, dtype, device, 2)
    if last:
        student = student.contiguous(memory_format=torch.channels_last)
    check_kernel(
        lambda s: kd_kl(s, teacher, **options),
        lambda s: _oracle(s, teacher.double(), **options),
        [student],
        size=options.get("temperature", 1.0) ** 2,
    )


@pytest.mark.parametrize(
    ("shape", "dtype"), in_types(ROWS + DENSE, [(41, 127), (2, 33, 9, 5)]), ids=str
)
def test_value_and_gradient(shape, dtype, device):
    _check(shape, dtype, device, temperature=4.0)


@pytest.mark.parametrize("shape", DENSE, ids=str)
def test_student_channels_last_beside_a_contiguous_teacher(shape, device):
    _check(shape, torch.float32, device, last=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("shape", [(7, 11), (2, 9, 3, 5)], ids=str)
def test_options_together(shape, standardize, reverse, device):
    rows = torch.Size(shape).numel() // shape[1]
    generator = torch.Generator().manual_seed(3)
    _check(
        shape, torch.float32, device, teachers=3, temperature=2.5, classes=(2, 8),
        weight=torch.rand(rows, generator=generator).to(device),
        index=torch.randint(3, (rows,), generator=generator).to(device),
        standardize=standardize, reverse=reverse,
    )  # fmt: skip


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check((5, 70), torch.float32, device, temperature=3.0, standardize=True)
        _check((2, 7, 3, 5), torch.float32, device, reverse=True)


@settings(max_examples=12)
@given(
    rows=st.integers(1, 20), classes=st.integers(1, 80), temperature=st.floats(0.5, 8),
    standardize=st.booleans(), reverse=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(rows, classes, temperature, standardize, reverse, seed):
    student, teacher = (_draw((rows, classes), torch.float32, seed=s) for s in (seed, seed + 1))
    options = {"temperature": temperature, "standardize": standardize, "reverse": reverse}
    check_kernel(
        lambda s: kd_kl(s, teacher, **options),
        lambda s: _oracle(s, teacher.double(), **options),
        [student],
        size=temperature**2,
    )


def test_equal_logits_and_shifts(device):
    student = _draw((9, 13), torch.float32, device)
    with using("triton"):
        assert float(kd_kl(student, student.clone(), 3.0)) == pytest.approx(0.0, abs=1e-6)
        moved = kd_kl(student + 5, student.flip(1) - 3)
        assert float(moved) == pytest.approx(float(kd_kl(student, student.flip(1))), rel=1e-5)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_masked_classes(choice, device):
    """A logit of -inf has no probability, on either side, and no gradient."""
    student, teacher = _draw((4, 6), torch.float32, device), _draw((4, 6), torch.float32, device, 1)
    student[:, 2] = teacher[:, 2] = teacher[:, 4] = float("-inf")
    with using(choice):
        value, (grad,) = loss_and_gradients(lambda s: kd_kl(s, teacher), [student])
    kept = [0, 1, 3, 4, 5]
    expected = _oracle(student[:, kept].double(), teacher[:, kept].double())
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert torch.isfinite(grad).all()
    assert not grad[:, 2].any()


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_constant_rows_and_no_rows(choice, device):
    with using(choice):
        flat = torch.ones(3, 4, device=device)
        _, (grad,) = loss_and_gradients(
            lambda s: kd_kl(s, _draw((3, 4), torch.float32, device), standardize=True), [flat]
        )
        assert torch.isfinite(grad).all()
        value, (grad,) = loss_and_gradients(lambda s: kd_kl(s, flat[:0]), [flat[:0]])
        assert float(value) == 0
        assert grad.shape == (0, 4)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_of_the_reference(standardize, reverse):
    student = _draw((3, 5), torch.float64).requires_grad_()
    teacher = _draw((3, 5), torch.float64, seed=1)
    weight = torch.rand(3)
    assert torch.autograd.gradcheck(
        lambda s: kd_kl_reference(
            s, teacher, 2.0, weight.double(), 1, 5, None, standardize, reverse
        ),
        student,
    )


def test_compiled_and_autocast(device):
    teacher = _draw((6, 9), torch.float32, device, 1)
    for check in (check_compiled, check_autocast):
        check(lambda s: kd_kl(s, teacher, 2.0), [_draw((6, 9), torch.float32, device)])


@pytest.mark.parametrize(
    ("student", "teacher", "options", "problem"),
    [
        ((3, 4), (3, 5), {}, r"student \(3, 4\), teacher \(3, 5\)"),
        ((3, 4), (3, 4), {"index": torch.zeros(3, dtype=torch.int64)}, "one more dimension"),
        ((3, 4), (3, 4), {"classes": (2, 5)}, r"classes \(2, 5\)"),
        ((3, 4), (3, 4), {"temperature": 0.0}, "above 0"),
        ((3, 4), (3, 4), {"weight": torch.ones(4)}, r"weight is \(4,\)"),
    ],
)
def test_what_does_not_fit(student, teacher, options, problem):
    with pytest.raises(ValueError, match=problem):
        kd_kl(torch.ones(student), torch.ones(teacher), **options)


def test_types_gradients_and_values_that_do_not_fit():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        kd_kl(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        kd_kl(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 0 of 6, teacher 1 of 6"):
        kd_kl(ones, torch.tensor([[1, 2, float("nan")], [1, 2, 3]]), check=True)
    index = torch.tensor([0, 2])
    with pytest.raises(ValueError, match="index leaves the 2 teachers"):
        kd_kl(ones, torch.ones(2, 2, 3), index=index, check=True)
