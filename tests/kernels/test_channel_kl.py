"""Channel-wise KL over the pixels against a float64 computation written from the formula."""

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
from kdcompile.kernels.channel_kl import CONFIGS, channel_kl, channel_kl_reference

SHAPES = [(1, 1, 1, 1), (2, 3, 1, 1), (1, 1, 5, 7), (2, 5, 3, 7), (3, 67, 4, 4), (1, 2, 65, 67)]
FORMATS = [(False, False), (True, True), (True, False), (False, True)]
SMALL = {"TILE": 32, "CHANNELS": 4, "PROGRAMS": 16, "num_warps": 4, "num_stages": 1}


def _draw(shape, dtype=torch.float32, device="cpu", seed=0, last=False):
    generator = torch.Generator().manual_seed(seed)
    drawn = (2 * torch.randn(shape, generator=generator)).to(dtype).to(device)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


def _oracle(student, teacher, temperature=1.0):
    total = student.new_zeros(())
    for n in range(student.shape[0]):
        for c in range(student.shape[1]):
            s, t = student[n, c].flatten() / temperature, teacher[n, c].flatten() / temperature
            p, q = torch.softmax(s, 0), torch.softmax(t, 0)
            seen = q > 0
            total = total + (q[seen] * (q[seen].log() - p[seen].log())).sum()
    return temperature**2 * total / (student.shape[0] * student.shape[1])


def _check(shape, dtype, device="cpu", formats=(False, False), temperature=1.0, seed=1):
    student = _draw(shape, dtype, device, seed, formats[0])
    teacher = _draw(shape, dtype, device, seed + 1, formats[1])
    check_kernel(
        lambda s: channel_kl(s, teacher, temperature),
        lambda s: _oracle(s, teacher.double(), temperature),
        [student],
        size=temperature**2,
    )


@pytest.mark.parametrize(("shape", "dtype"), in_types(SHAPES, [(3, 67, 4, 4)]), ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_value_and_gradient(shape, last, dtype, device):
    _check(shape, dtype, device, (last, last), temperature=4.0)


@pytest.mark.parametrize("formats", FORMATS)
def test_memory_formats_side_by_side(formats, device):
    for shape in ((2, 5, 3, 7), (1, 33, 9, 5), (2, 1, 4, 3)):
        _check(shape, torch.float32, device, formats)


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        for formats in FORMATS[:3]:
            _check((1, 9, 17, 31), torch.float32, device, formats, temperature=3.0)


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("programs", [1, 8, 100])
def test_rows_cut_into_strips(formats, programs, device, monkeypatch):
    """Strips of one and of several steps, the last of them short, and a loop in the merge."""
    monkeypatch.setattr("kdcompile.kernels.channel_kl.CONFIGS", [{**SMALL, "PROGRAMS": programs}])
    monkeypatch.setattr("kdcompile.kernels.channel_kl.MERGE", {"ROWS": 2, "STRIPS": 2})
    _check((2, 3, 9, 29), torch.float32, device, formats, temperature=2.0)


@settings(max_examples=12)
@given(
    n=st.integers(1, 3), c=st.integers(1, 20), h=st.integers(1, 9), w=st.integers(1, 20),
    formats=st.sampled_from(FORMATS), temperature=st.floats(0.5, 8), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(n, c, h, w, formats, temperature, seed):
    _check((n, c, h, w), torch.float32, "cpu", formats, temperature, seed)


def test_equal_maps_and_shifts(device):
    student = _draw((2, 3, 5, 7), device=device)
    with using("triton"):
        assert float(channel_kl(student, student.clone(), 3.0)) == pytest.approx(0.0, abs=1e-6)
        moved = channel_kl(student + 5, student.flip(2) - 3)
        assert float(moved) == pytest.approx(float(channel_kl(student, student.flip(2))), rel=1e-4)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_pixels_without_probability(choice, strips, device, monkeypatch):
    """Whole strips of -inf on both sides, and one more pixel of the teacher."""
    if strips:
        monkeypatch.setattr("kdcompile.kernels.channel_kl.CONFIGS", [SMALL])
    student, teacher = (_draw((1, 2, 20, 30), device=device, seed=s) for s in (1, 2))
    out = torch.zeros(20, 30, dtype=torch.bool, device=device)
    out[3:17] = True
    student[..., out] = teacher[..., out] = float("-inf")
    teacher[..., 0, 0] = float("-inf")
    with using(choice):
        value, (grad,) = loss_and_gradients(lambda s: channel_kl(s, teacher), [student])
    kept = _oracle(*(x[..., ~out][..., None].double() for x in (student, teacher)))
    assert float(value) == pytest.approx(float(kept), rel=1e-5)
    assert torch.isfinite(grad).all()
    assert not grad[..., out].any()
    assert grad[..., 0, 0].all()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_channel_that_is_empty_on_one_side_takes_no_part(side, device):
    maps = {"student": _draw((1, 3, 4, 5), device=device), "teacher": _draw((1, 3, 4, 5), seed=1)}
    maps["teacher"] = maps["teacher"].to(device)
    rest = _oracle(*(m[:, [0, 2]].double() for m in maps.values())) * 2 / 3
    maps[side][:, 1] = float("-inf")
    for choice in ("triton", "reference"):
        with using(choice):
            value, (grad,) = loss_and_gradients(
                lambda s: channel_kl(s, maps["teacher"]), [maps["student"]]
            )
        assert float(value) == pytest.approx(float(rest), rel=1e-5)
        assert torch.isfinite(grad).all()
        assert not grad[:, 1].any()


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_where_the_student_has_no_probability_the_loss_is_infinite(choice, device):
    student, teacher = (_draw((1, 1, 4, 5), device=device, seed=s) for s in (1, 2))
    student[..., 2, 3] = float("-inf")
    with using(choice):
        value, (grad,) = loss_and_gradients(lambda s: channel_kl(s, teacher), [student])
    assert float(value) == float("inf")
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_constant_maps_and_no_images(choice, device):
    flat = torch.full((2, 3, 4, 4), 7.0, device=device)
    with using(choice):
        value, (grad,) = loss_and_gradients(lambda s: channel_kl(s, torch.zeros_like(s)), [flat])
        assert float(value) == pytest.approx(0, abs=1e-6)
        assert grad.abs().max() < 1e-7
        value, (grad,) = loss_and_gradients(lambda s: channel_kl(s, flat[:0]), [flat[:0]])
        assert float(value) == 0
        assert grad.shape == (0, 3, 4, 4)


def test_gradcheck_of_the_reference():
    student, teacher = (_draw((2, 3, 2, 3), torch.float64, seed=s) for s in (1, 2))
    assert torch.autograd.gradcheck(
        lambda s: channel_kl_reference(s, teacher, 2.0), student.requires_grad_()
    )


def test_compiled_autocast_and_repeated(device):
    student, teacher = (_draw((2, 3, 9, 7), device=device, seed=s) for s in (1, 2))
    for check in (check_compiled, check_autocast):
        check(lambda s: channel_kl(s, teacher, 2.0), [student])
    with using("triton"):
        runs = [loss_and_gradients(lambda s: channel_kl(s, teacher), [student]) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1][0], runs[1][1][0])


def test_what_does_not_fit():
    ones = torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"student \(1, 2, 3, 3\), teacher \(1, 3, 3, 3\)"):
        channel_kl(ones, torch.ones(1, 3, 3, 3))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]: student \(2, 3, 3\), teacher"):
        channel_kl(ones[0], ones[0])
    with pytest.raises(ValueError, match="temperature is 0"):
        channel_kl(ones, ones, 0.0)
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        channel_kl(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        channel_kl(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 0 of 18, teacher 18 of 18"):
        channel_kl(ones, ones * float("nan"), check=True)
