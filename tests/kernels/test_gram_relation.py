"""Inter-RT against a float64 computation written from the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check_autocast, check_compiled, check_kernel, in_types, loss_and_gradients

from kdcompile.kernels import _gram_launch, _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.gram_relation import gram_relation, gram_relation_reference

SIZES = [(3, 16, 12), (5, 8, 6), (4, 4, 3), (1, 4, 3)]
CASES = {
    "pooled": SIZES,
    "ragged, the smallest first": [(2, 3, 4), (3, 7, 10), (1, 13, 18)],
    "already pooled": [(5, 7, 9), (1, 7, 9), (6, 7, 9)],
    "one channel each": [(1, 6, 10), (1, 3, 5)],
    "one pixel": [(3, 1, 1), (2, 4, 4), (1, 2, 2)],
    "wide layers": [(130, 2, 3), (67, 4, 6), (1, 2, 3)],
    "windows of 17 x 17": [(1, 34, 51), (2, 2, 3)],
}
FORMATS = (torch.contiguous_format, torch.channels_last)
BOTH = pytest.mark.parametrize("choice", ["triton", "reference"])


def _maps(batch=2, dtype=torch.float32, seed=0, sizes=SIZES, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(batch, *size, generator=generator, dtype=torch.float64) for size in sizes]
    return [m.to(dtype).to(device) for m in drawn]


def _oracle(students, teachers, reduction="paper"):
    def normal(maps):
        height, width = min((m.shape[2:] for m in maps), key=lambda s: s[0] * s[1])
        found = []
        for value in maps:
            fits = [
                k
                for k in (1, 2, 4, 8, 16, 32, *range(1, 20))  # powers of two first
                if (-(-value.shape[2] // k), -(-value.shape[3] // k)) == (height, width)
            ]
            pooled = torch.nn.functional.max_pool2d(
                value.double(), fits[0], ceil_mode=True
            ).flatten(2)
            centred = pooled - pooled.mean(2, keepdim=True)
            found.append(centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt())
        return found, height * width

    (own, pixels), (other, _) = normal(students), normal(teachers)
    total, entries = 0.0, 0
    for i in range(len(own)):
        for j in range(i + 1, len(own)):
            mine = torch.einsum("nap,nbp->nab", own[i], own[j]) / pixels
            theirs = torch.einsum("nap,nbp->nab", other[i], other[j]) / pixels
            total = total + (mine - theirs).square().sum() / len(mine)
            entries += mine[0].numel()
    return total if reduction == "paper" else total / entries


def _check(students, teachers, reduction="paper"):
    check_kernel(
        lambda *s: gram_relation(s, teachers, reduction),
        lambda *s: _oracle(s, teachers, reduction),
        students,
    )


@pytest.mark.parametrize(
    ("case", "dtype"), in_types(CASES, ["ragged, the smallest first", "wide layers"]), ids=str
)
def test_value_and_gradients(case, dtype, device):
    _check(*(_maps(2, dtype, seed, CASES[case], device) for seed in (1, 2)))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("formats", [(0, 1), (1, 0), (1, 1)], ids=str)
def test_memory_formats(formats, mixed, device):
    sizes = [(3, 9, 11), (5, 3, 4), (2, 3, 4)]
    both = []
    for seed, choice in enumerate(formats):
        maps = _maps(3, torch.float32, seed, sizes, device)
        kinds = [FORMATS[(choice + i) % 2 if mixed else choice] for i in range(len(maps))]
        both.append([m.contiguous(memory_format=k) for m, k in zip(maps, kinds, strict=True)])
    _check(*both)


@pytest.mark.parametrize(
    ("dtype", "choice"), [*((torch.float16, i) for i in range(4)), (torch.float32, 1)], ids=str
)
def test_every_configuration(dtype, choice, device):
    half = (_gram_launch.POOL, _gram_launch.GRAM, _gram_launch.BACK)
    wide = (_gram_launch.GRAM_WIDE, _gram_launch.BACK_WIDE)
    assert [max(map(len, kinds)) for kinds in (half, wide)] == [4, 2]
    sizes = [(70, 10, 20), (67, 5, 10), (3, 5, 10)]
    students, teachers = (_maps(1, dtype, seed, sizes, device) for seed in (1, 2))
    students[0] = students[0].contiguous(memory_format=torch.channels_last)
    with _tune.config(choice):
        _check(students, teachers)


def test_rows_longer_than_a_block(monkeypatch, device):
    monkeypatch.setattr(_gram_launch, "ROW", 64)
    sizes = [(3, 22, 18), (2, 11, 9)]
    _check(*(_maps(2, torch.float32, seed, sizes, device) for seed in (1, 2)), "mean")


@st.composite
def _sizes(draw):
    """Maps that pool to the first, with edges cut off."""
    height, width = draw(st.integers(2, 6)), draw(st.integers(3, 6))
    sizes = [(draw(st.integers(1, 9)), height, width)]
    for _ in range(draw(st.integers(1, 3))):
        k = draw(st.integers(1, 5))
        cuts = draw(st.integers(0, min(k, height) - 1)), draw(st.integers(0, k - 1))
        sizes.append((draw(st.integers(1, 9)), height * k - cuts[0], width * k - cuts[1]))
    return draw(st.permutations(sizes))


@settings(max_examples=5)
@given(sizes=_sizes(), batch=st.integers(1, 3), last=st.booleans(), seed=st.integers(0, 99))
def test_any_shape(sizes, batch, last, seed):
    students, teachers = (_maps(batch, torch.float32, seed + i, sizes) for i in range(2))
    if last:
        students[0] = students[0].contiguous(memory_format=torch.channels_last)
    check_kernel(
        lambda *s: gram_relation(s, teachers, "paper"),
        lambda *s: _oracle(s, teachers),
        students,
        slack=10,  # few pixels may lie close together: float32 loses digits of the deviation
    )


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_reductions_of_the_reference(reduction):
    students, teachers = _maps(seed=1), _maps(seed=2)
    own = gram_relation_reference(students, teachers, reduction)
    assert float(own) == pytest.approx(float(_oracle(students, teachers, reduction)), rel=1e-5)


def test_a_mean_far_above_the_deviation(device):
    students, teachers = (_maps(2, torch.float32, seed, device=device) for seed in (1, 2))
    _check([m + 1000 for m in students], [m - 300 for m in teachers])


@BOTH
def test_affine_changes_of_a_channel_do_not_matter(choice, device):
    students, teachers = _maps(seed=1, device=device), _maps(seed=2, device=device)
    scales = [torch.rand(m.shape[1], 1, 1).to(device) + 0.5 for m in students]
    moved = [m * scale + 3 for m, scale in zip(students, scales, strict=True)]
    with using(choice):
        expected = float(gram_relation(students, teachers))
        assert float(gram_relation(moved, teachers)) == pytest.approx(expected, rel=1e-3)


@BOTH
def test_batch_is_the_mean_of_single_images(choice, device):
    students, teachers = _maps(3, seed=1, device=device), _maps(3, seed=2, device=device)
    with using(choice):
        whole = float(gram_relation(students, teachers, "paper"))
        single = [
            float(gram_relation(*([m[i : i + 1] for m in net] for net in both), "paper"))
            for i, both in enumerate([(students, teachers)] * 3)
        ]
    assert whole == pytest.approx(sum(single) / 3, rel=1e-5)


@BOTH
def test_equal_constant_and_no_maps(choice, device):
    students = _maps(seed=1, device=device)
    with using(choice):
        assert float(gram_relation(students, [m.clone() for m in students])) == 0.0
        flat = [torch.full_like(m, 0.1 * i - 7) for i, m in enumerate(students)]
        value, grads = loss_and_gradients(lambda *s: gram_relation(s, students), flat)
        assert float(value) == pytest.approx(float(_oracle(flat, students, "mean")), rel=1e-5)
        assert all(torch.isfinite(g).all() for g in grads)
        none = [m[:0] for m in students]
        value, grads = loss_and_gradients(lambda *s: gram_relation(s, none), none)
        assert float(value) == 0.0
        assert [g.shape for g in grads] == [m.shape for m in none]


@pytest.mark.parametrize("last", [False, True])
def test_of_equal_values_the_first_has_the_gradient(last, device):
    """As in the reference, that is in PyTorch, ragged edges and infinite values included."""
    students, teachers = (_maps(2, torch.float32, seed, device=device) for seed in (1, 2))
    students = [m.round() for m in students]
    students[0][0, 0, :4, :4] = float("-inf")  # a window without a value
    students[0][0, 0, 3, 3] = 1.0
    if last:
        students = [m.contiguous(memory_format=torch.channels_last) for m in students]
    found = []
    for choice in ("triton", "reference"):
        with using(choice):
            found.append(loss_and_gradients(lambda *s: gram_relation(s, teachers), students)[1])
    for own, truth in zip(*found, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-4, atol=1e-7)


@BOTH
def test_values_that_are_no_numbers_reach_the_loss(choice, device):
    students, teachers = _maps(seed=1, device=device), _maps(seed=2, device=device)
    students[0][0, 0, 0, 0] = float("nan")
    with using(choice):
        assert gram_relation(students, teachers).isnan()


def test_gradients_of_some_maps_and_types_that_differ(device):
    """Maps in several types share a loss; a map that needs no gradient has none."""
    kinds = (torch.float32, torch.float16, torch.float16, torch.float32)
    students, teachers = (
        [m.to(kind) for m, kind in zip(_maps(seed=seed, device=device), kinds, strict=True)]
        for seed in (1, 2)
    )
    for m in students[:2]:
        m.requires_grad_()
    truth = torch.autograd.grad(_oracle(students, teachers), students[:2])
    with using("triton"):
        found = torch.autograd.grad(gram_relation(students, teachers, "paper"), students[:2])
    for own, expected in zip(found, truth, strict=True):
        assert own.dtype == expected.dtype
        assert float((own - expected).norm() / expected.norm()) < 4e-3


def test_gradcheck_of_the_reference():
    sizes = [(2, 6, 4), (1, 5, 3), (2, 3, 2)]
    students, teachers = (_maps(2, torch.float64, seed, sizes) for seed in (1, 2))
    students = [m.requires_grad_() for m in students]
    assert torch.autograd.gradcheck(lambda *s: gram_relation_reference(s, teachers), students)


def test_compiled_autocast_and_again(device):
    students, teachers = _maps(seed=1, device=device), _maps(seed=2, device=device)
    students[0] = students[0].contiguous(memory_format=torch.channels_last)

    def loss(*maps):
        return gram_relation(maps, teachers)

    check_compiled(loss, students)
    check_autocast(loss, students)
    with using("triton"):
        first, second = (loss_and_gradients(loss, students) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_maps_that_do_not_fit():
    students = _maps()
    with pytest.raises(ValueError, match="at least two"):
        gram_relation(students[:1], students[:1])
    with pytest.raises(ValueError, match="4 students, 3 teachers"):
        gram_relation(students, students[:3])
    with pytest.raises(ValueError, match=r"student \(2, 3, 16, 12\), teacher \(2, 3, 16, 11\)"):
        gram_relation(students, [m[:, :, :, :-1] for m in students])
    odd = _maps(sizes=[(2, 9, 9), (2, 4, 4)])
    with pytest.raises(ValueError, match=r"\(9, 9\) does not pool to \(4, 4\)"):
        gram_relation(odd, odd)
    other = [students[0], students[1][:1]]
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 12\).*\(1, 5, 8, 6\)"):
        gram_relation(other, other)
    rows = [m.flatten(2) for m in students]
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        gram_relation(rows, rows)


def test_types_gradients_and_values_that_do_not_fit():
    students = _maps()
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        gram_relation(students, [m.half() for m in students])
    with pytest.raises(ValueError, match="require a gradient"):
        gram_relation(students, [m.clone().requires_grad_() for m in students])
    teachers = [m.clone() for m in students]
    teachers[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="student 0 of 480, teacher 1 of 480"):
        gram_relation(students, teachers, check=True)
