"""Density terms against a float64 computation written from the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check_autocast, check_compiled, check_kernel, loss_and_gradients

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.density_loss import CONFIGS, density_loss, density_loss_reference

MAPS = [(1, 1, 1, 1), (2, 1, 8, 8), (2, 1, 17, 23), (3, 1, 5, 41), (2, 3, 9, 10), (1, 1, 72, 96)]


def _draw(shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def _oracle(student, target, teacher=None, block=8, reduction="mean"):
    n, c, h, w = student.shape
    cells = n if reduction == "paper" else student.numel()
    counts = [
        (student - target)[i, k, y : y + block, x : x + block].sum().abs()
        for i in range(n) for k in range(c)
        for y in range(0, h, block) for x in range(0, w, block)
    ]  # fmt: skip
    hard = (student - target).square().sum() / cells
    soft = 0 * hard if teacher is None else (student - teacher).square().sum() / cells
    return hard, soft, torch.stack(counts).mean()


def _check(shape, dtype, device, soft=True, last=(), types=None, seed=1, **options):
    types = types or (dtype, dtype, dtype)
    maps = [_draw(shape, kind, device, seed + i) for i, kind in enumerate(types)]
    for i in last:
        maps[i] = maps[i].contiguous(memory_format=torch.channels_last)
    student, target, teacher = maps[0], maps[1], maps[2] if soft else None
    wide = (target.double(), teacher.double() if soft else None)
    check_kernel(
        lambda s: torch.stack(density_loss(s, target, teacher, **options)),
        lambda s: torch.stack(_oracle(s, *wide, **options)),
        [student],
    )


@pytest.mark.parametrize("reduction", ["mean", "paper"])
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_value_and_gradient(shape, reduction, dtype, device):
    _check(shape, dtype, device, reduction=reduction)


@pytest.mark.parametrize("term", range(3))
@pytest.mark.parametrize("soft", [True, False])
def test_each_term(term, soft, dtype, device):
    student, target, teacher = (_draw((2, 1, 19, 13), dtype, device, seed) for seed in range(3))
    wide = (target.double(), teacher.double()) if soft else (target.double(),)
    check_kernel(
        lambda s: density_loss(s, target, teacher if soft else None)[term],
        lambda s: _oracle(s, *wide)[term],
        [student],
    )


@pytest.mark.parametrize("block", [1, 3, 5, 8, 16, 90])
def test_blocks(block, device):
    _check((2, 1, 37, 21), torch.float32, device, block=block)


@pytest.mark.parametrize("last", [(0,), (1,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_memory_formats(last, device):
    for shape in ((2, 3, 9, 11), (2, 1, 9, 11), (3, 2, 1, 1)):
        _check(shape, torch.float32, device, last=last)


@pytest.mark.parametrize("student", [torch.float16, torch.bfloat16])
def test_types_may_differ(student, device):
    _check((2, 1, 11, 9), student, device, types=(student, torch.float32, torch.float16))


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check((2, 1, 35, 70), torch.float32, device)
        _check((1, 1, 67, 130), torch.float32, device, block=65)


@settings(max_examples=20)
@given(
    shape=st.tuples(*[st.integers(1, top) for top in (3, 3, 20, 20)]), block=st.integers(1, 21),
    soft=st.booleans(), paper=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape, block, soft, paper, seed):
    reduction = "paper" if paper else "mean"
    _check(shape, torch.float32, "cpu", soft, block=block, reduction=reduction, seed=seed)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_equal_counts_and_no_maps(choice, device):
    student = torch.ones(1, 1, 4, 4, device=device)
    swapped = student.clone()
    swapped[0, 0, 0, 0], swapped[0, 0, 1, 1] = 0.0, 2.0
    with using(choice):
        value, (grad,) = loss_and_gradients(lambda s: density_loss(s, swapped)[2], [student])
        assert float(value) == 0
        assert not grad.any()  # the count agrees to the last bit
        none = student[:0]
        for i in range(3):
            term = lambda s, i=i: density_loss(s, none, none)[i]  # noqa: E731
            value, (grad,) = loss_and_gradients(term, [none])
            assert float(value) == 0
            assert grad.shape == none.shape


def test_the_last_block_is_what_is_there(device):
    """16 cells of one person each: 9 whole ones in blocks of 3 count 9, the others 3 or 1."""
    student, target = torch.ones(1, 1, 4, 4, device=device), torch.zeros(1, 1, 4, 4, device=device)
    for choice in ("triton", "reference"):
        with using(choice):
            hard, soft, count = density_loss(student, target, block=3, reduction="paper")
        assert (float(hard), float(soft), float(count)) == (16.0, 0.0, 4.0)


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_gradcheck_of_the_reference(reduction):
    student, target, teacher = (_draw((2, 1, 5, 7), torch.float64, seed=s) for s in range(3))
    assert torch.autograd.gradcheck(
        lambda s: density_loss_reference(s, target, teacher, 3, reduction),
        student.requires_grad_(),
    )


def test_compiled_autocast_and_twice(device):
    student, target, teacher = (_draw((2, 1, 19, 33), device=device, seed=s) for s in range(3))

    def loss(s):
        hard, soft, count = density_loss(s, target, teacher)
        return hard + 2 * soft + 3 * count

    for check in (check_compiled, check_autocast):
        check(loss, [student])
    with using("triton"):
        once, twice = (loss_and_gradients(loss, [student]) for _ in range(2))
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1][0], twice[1][0])


ONES = torch.ones(1, 1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((ONES, ONES[..., :2]), {}, r"student \(1, 1, 2, 3\), target \(1, 1, 2, 2\)"),
        ((ONES, ONES, ONES[0]), {}, r"student \(1, 1, 2, 3\), teacher \(1, 2, 3\)"),
        ((ONES[0], ONES[0]), {}, r"\[N, C, h, w\]"),
        ((ONES, ONES.to("meta")), {}, "student on cpu, target on meta"),
        ((ONES, ONES.clone().requires_grad_()), {}, "target's densities .* require a gradient"),
        ((ONES, ONES, ONES.clone().requires_grad_()), {}, "teacher's .* require a gradient"),
        ((ONES, ONES), {"block": 0}, "block is 0"),
        ((ONES, ONES), {"reduction": "sum"}, "reduction is 'sum'"),
        ((ONES, ONES / 0), {"check": True}, "student 0 of 6, target 6 of 6"),
        ((ONES, ONES, ONES / 0), {"check": True}, "target 0 of 6, teacher 6 of 6"),
    ],
)  # fmt: skip
def test_what_does_not_fit(arguments, options, problem):
    with pytest.raises(ValueError, match=problem):
        density_loss(*arguments, **options)
