"""SPKD, RKD and PKT against float64 computations written from the formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check_autocast, check_compiled, check_kernel, in_types, loss_and_gradients

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.batch_relation import (
    CONFIGS,
    MANY,
    batch_relation,
    batch_relation_reference,
)

KINDS = ["spkd", "rkd", "pkt"]
SHAPES = [  # student and teacher
    ((2, 3), (2, 1)),
    ((3, 5), (3, 1, 4, 4)),
    ((5, 7, 3, 5), (5, 11)),
    ((17, 2, 8, 8), (17, 3, 4, 4)),  # numbers of elements that 16 divides
    ((64, 33), (64, 9)),
]


def _draw(shape, dtype=torch.float32, device="cpu", seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + mean).to(dtype).to(device)


def _matrix(maps, kind):
    """Pair by pair."""
    f = maps.flatten(1)
    batch = len(f)
    if kind == "rkd":
        i, j = (f[:, None] != f[None]).any(2).nonzero(as_tuple=True)
        found = f.new_zeros(batch, batch)
        if not len(i):
            return found
        distances = (f[i] - f[j]).square().sum(1).sqrt()
        return found.index_put((i, j), distances / distances.mean())
    gram = torch.stack([(f[i] * f).sum(1) for i in range(batch)])
    if kind == "spkd":
        return torch.stack([row / row.norm() if bool(row.any()) else row for row in gram])
    lengths = torch.stack([x.norm() if bool(x.any()) else torch.ones_like(x[0]) for x in f])
    cosines = gram / lengths[:, None] / lengths
    return (cosines + 1) / (cosines + 1).sum(1, keepdim=True)


def _oracle(student, teacher, kind):
    a, b = _matrix(student, kind), _matrix(teacher.double(), kind)
    batch = len(student)
    if kind == "spkd":
        return (a - b).square().sum() / batch**2
    if kind == "rkd":
        gap = (a - b).abs()
        return torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).sum() / batch**2
    return (b * torch.log((b + 1e-7) / (a + 1e-7))).sum() / batch**2


def _check(shapes, kind, dtype, device, last=(False, False), mean=0.0):
    student, teacher = (
        _draw(shape, dtype, device, seed, mean) for seed, shape in enumerate(shapes)
    )
    if last[0]:
        student = student.contiguous(memory_format=torch.channels_last)
    if last[1]:
        teacher = teacher.contiguous(memory_format=torch.channels_last)
    scale = 4096.0  # a loss scale, as float16 training uses: the gradients are near 1e-7 without
    check_kernel(
        lambda s: scale * batch_relation(s, teacher, kind),
        lambda s: scale * _oracle(s, teacher, kind),
        [student],
        # a sum of p log(p / q), of both signs, with rows of p that sum to 1
        size=scale / len(student) if kind == "pkt" else 1e-6,
        # the differences from the first sample are rounded to the maps' type
        slack=2.0 if kind == "rkd" and dtype != torch.float32 else 1.0,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shapes", "dtype"), in_types(SHAPES, SHAPES[3:]), ids=str)
def test_value_and_gradient(shapes, kind, dtype, device):
    _check(shapes, kind, dtype, device)


@pytest.mark.parametrize("kind", KINDS)
def test_more_samples_than_one_tile(kind, device):
    _check(((66, 19), (66, 32)), kind, torch.float32, device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)])
def test_memory_formats(kind, last, device):
    _check(((6, 3, 5, 4), (6, 7, 2, 5)), kind, torch.float32, device, last)


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check(((9, 160), (9, 300)), "spkd", torch.float16, device)
        _check(((9, 160), (9, 80)), "rkd", torch.float32, device)
        if choice < len(MANY):
            _check(((65, 48), (65, 16)), "rkd", torch.float16, device)


@settings(max_examples=8)
@given(
    kind=st.sampled_from(KINDS), batch=st.integers(3, 20), ours=st.integers(3, 60),
    theirs=st.integers(3, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(kind, batch, ours, theirs, seed):
    student, teacher = _draw((batch, ours), seed=seed), _draw((batch, theirs), seed=seed + 1)
    check_kernel(
        lambda s: batch_relation(s, teacher, kind),
        lambda s: _oracle(s, teacher, kind),
        [student],
        size=1 / batch if kind == "pkt" else 1e-6,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_larger_than_the_deviations(kind, device):
    """Distances do not change; nor do they in a Gram of differences from the first sample."""
    _check(((12, 80), (12, 30)), kind, torch.float32, device, mean=10.0)
    student, teacher = _draw((8, 64), device=device), _draw((8, 20), device=device, seed=1)
    if kind == "rkd":
        with using("triton"):
            near, (grad,) = loss_and_gradients(
                lambda s: batch_relation(s, teacher, kind), [student]
            )
            far, (moved,) = loss_and_gradients(
                lambda s: batch_relation(s, teacher, kind), [(student + 256).contiguous()]
            )
        assert float(near) == pytest.approx(float(far), rel=1e-3)  # student + 256 is rounded
        torch.testing.assert_close(grad, moved, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case", ["zero sample", "zeros", "equal samples", "a pair", "a zero first"]
)
def test_zeros_and_equal_samples(case, kind, device):
    """What is 0 / 0 is the same in kernel, reference and oracle, and has a finite gradient."""
    student, teacher = _draw((5, 12), device=device), _draw((5, 7), device=device, seed=1)
    student.copy_(student.sign())  # whole numbers: equal samples have distance 0 exactly
    if case in ("zero sample", "a zero first"):
        student[3 if case == "zero sample" else 0] = 0
        teacher[1] = 0
    elif case == "zeros":
        student.zero_()
    elif case == "a pair":
        student[4] = student[2]
    else:
        student.copy_(student[:1].expand(5, 12))
        teacher.fill_(2.0)
    expected = _oracle(student.double(), teacher, kind)
    gradients = []
    for choice in ("triton", "reference"):
        with using(choice):
            value, (grad,) = loss_and_gradients(
                lambda s: batch_relation(s, teacher, kind), [student]
            )
        assert float(value) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
        assert torch.isfinite(grad).all()
        gradients.append(grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_itself_and_a_permutation(kind, device):
    student, teacher = _draw((9, 50), device=device), _draw((9, 31), device=device, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with using("triton"):
        assert float(batch_relation(student, 2 * student, kind)) == pytest.approx(0.0, abs=1e-7)
        moved = batch_relation(student[order], teacher[order], kind)
        expected = batch_relation(student, teacher, kind)
    assert float(moved) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_nothing_to_relate(choice, kind, device):
    for student, teacher in (
        ((0, 4), (0, 3)),
        ((3, 0), (3, 2)),
        ((3, 2), (3, 0)),
        ((1, 4), (1, 3)),
    ):
        with using(choice):
            value, (grad,) = loss_and_gradients(
                lambda s, shape=teacher: batch_relation(s, torch.ones(shape, device=device), kind),
                [torch.ones(student, device=device)],
            )
        assert float(value) == pytest.approx(0.0, abs=1e-7)
        assert grad.shape == student
        assert not grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_reference(kind):
    student = _draw((4, 5), torch.float64).requires_grad_()
    teacher = _draw((4, 3), torch.float64, seed=1)
    assert torch.autograd.gradcheck(lambda s: batch_relation_reference(s, teacher, kind), student)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_autocast_and_again(kind, device):
    student, teacher = _draw((6, 5), device=device), _draw((6, 9), device=device, seed=1)

    def loss(maps):
        return batch_relation(maps, teacher, kind)

    if kind == "rkd":  # the kinds differ in a string alone
        check_compiled(loss, [student])
    check_autocast(loss, [student])
    student, teacher = _draw((40, 300), device=device), _draw((40, 7), device=device, seed=1)
    with using("triton"):
        (first, grad), (second, again) = (loss_and_gradients(loss, [student]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(grad[0], again[0])


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "problem"),
    [
        ((3, 4), (4, 4), "spkd", r"student \(3, 4\), teacher \(4, 4\)"),
        ((3,), (3, 4), "rkd", r"student \(3,\), teacher \(3, 4\)"),
        ((3, 4), (3, 4), "crd", "'crd', it must be one of spkd, rkd, pkt"),
    ],
)
def test_what_does_not_fit(student, teacher, kind, problem):
    with pytest.raises(ValueError, match=problem):
        batch_relation(torch.ones(student), torch.ones(teacher), kind)


def test_types_gradients_and_values_that_do_not_fit():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        batch_relation(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        batch_relation(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 0 of 6, teacher 1 of 6"):
        batch_relation(ones, torch.tensor([[1, 2, float("nan")], [1, 2, 3]]), check=True)
