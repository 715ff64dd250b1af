"""Masked hint loss against a float64 computation written from the formula."""

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
from kdcompile.kernels.feature_mse import CONFIGS, feature_mse, feature_mse_reference

SHAPES = [(1, 1, 1, 1), (2, 3, 1, 1), (1, 1, 5, 7), (2, 5, 3, 7), (3, 67, 5, 4)]
FORMATS = [(False, False), (True, True), (True, False), (False, True)]
MASKS = ["none", "bool", "float"]
NORMALIZE = pytest.mark.parametrize("normalize", [False, True])
VARIANTS = pytest.mark.parametrize(
    ("kind", "normalize"), [("none", False), ("bool", False), ("none", True), ("float", True)]
)
CHOICES = pytest.mark.parametrize("choice", ["triton", "reference"])


def _draw(shape, dtype=torch.float32, device="cpu", seed=0, last=False):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator).to(dtype).to(device)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


def _mask(kind, shape, device="cpu"):
    """No mask, [N, H, W] of bool, or [N, 1, H, W] of float32; the first pixel always counts."""
    n, _, h, w = shape
    weights = torch.rand((n, 1, h, w), generator=torch.Generator().manual_seed(9))
    weights[weights < 0.3] = 0
    weights[0, 0, 0, 0] = 0.7
    weights = weights.to(device)
    return {"none": None, "bool": weights[:, 0] > 0.5, "float": weights}[kind]


def _unit(vectors):
    length = vectors.pow(2).sum(1, keepdim=True)
    return vectors / torch.where(length == 0, torch.inf, length).sqrt()


def _oracle(student, teacher, mask=None, normalize=False):
    channels = student.shape[1]
    s, t = (x.permute(0, 2, 3, 1).reshape(-1, channels) for x in (student, teacher))
    m = s.new_ones(len(s)) if mask is None else mask.reshape(-1).double()
    s, t, m = s[m != 0], t[m != 0], m[m != 0]
    if normalize:
        s, t = _unit(s), _unit(t)
    return (m[:, None] * (s - t).pow(2)).sum() / (channels * m.sum())


def _check(shape, dtype=torch.float32, device="cpu", formats=(False, False), kind="none",
           normalize=False, seed=1):  # fmt: skip
    student = _draw(shape, dtype, device, seed, formats[0])
    teacher = _draw(shape, dtype, device, seed + 1, formats[1])
    mask = _mask(kind, shape, device)
    lengths = student.detach().float().norm(dim=1)
    shortest = float(lengths[lengths > 0].min()) if bool((lengths > 0).any()) else 1.0
    check_kernel(
        lambda s: feature_mse(s, teacher, mask, normalize=normalize),
        lambda s: _oracle(s, teacher.double(), mask, normalize),
        [student],
        size=2 / shape[1] if normalize else 1.0,  # 2 - 2 cos loses what the cosine rounds away
        # the gradient of a direction, and its rounding, goes with one over the vector's length
        slack=max(1.0, 0.01 / shortest) if normalize else 1.0,
    )


@pytest.mark.parametrize(("shape", "dtype"), in_types(SHAPES, [(3, 67, 5, 4)]), ids=str)
@pytest.mark.parametrize("last", [False, True])
@VARIANTS
def test_value_and_gradient(shape, last, kind, normalize, dtype, device):
    _check(shape, dtype, device, (last, last), kind, normalize)


@pytest.mark.parametrize("formats", FORMATS)
@VARIANTS
def test_memory_formats_side_by_side(formats, kind, normalize, device):
    for shape in ((2, 5, 3, 7), (1, 33, 9, 5), (2, 1, 4, 3)):
        _check(shape, torch.float32, device, formats, kind, normalize)


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
@NORMALIZE
def test_every_configuration(choice, normalize, device):
    with _tune.config(choice):
        for formats in FORMATS[:3]:
            _check((1, 35, 11, 13), torch.float32, device, formats, "float", normalize)
        _check((1, 35, 11, 13), torch.float32, device)


@pytest.mark.parametrize("formats", FORMATS[:3])
@VARIANTS
def test_many_blocks(formats, kind, normalize, device, monkeypatch):
    """More than one step in each loop, the last of them short."""
    config = {"TILE": 32, "PIXELS": 16, "CHANNELS": 4, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr("kdcompile.kernels.feature_mse.CONFIGS", [config])
    monkeypatch.setattr("kdcompile.kernels.feature_mse.FINISH", {"SIZE": 4})
    monkeypatch.setattr("kdcompile.kernels.feature_mse.PROGRAMS", 4)
    _check((2, 5, 7, 9), torch.float32, device, formats, kind, normalize)


@settings(max_examples=12)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 40)
    ),
    formats=st.sampled_from(FORMATS), kind=st.sampled_from(MASKS), normalize=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape, formats, kind, normalize, seed):
    _check(shape, torch.float32, "cpu", formats, kind, normalize, seed)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_other_types(kind, device):
    student, teacher = (_draw((2, 3, 4, 5), device=device, seed=s) for s in (1, 2))
    mask = _mask("float", student.shape, device).to(kind)
    check_kernel(
        lambda s: feature_mse(s, teacher, mask),
        lambda s: _oracle(s, teacher.double(), mask),
        [student],
    )


@NORMALIZE
@CHOICES
def test_pixels_of_zeros(normalize, choice, device):
    """A vector of 0 stays 0 and gets no gradient; the loss counts the other side's direction."""
    student, teacher = (_draw((1, 4, 3, 5), device=device, seed=s) for s in (1, 2))
    student[..., 0, :3], teacher[..., 0, 2:5] = 0, 0
    with using(choice):
        value, (grad,) = loss_and_gradients(
            lambda s: feature_mse(s, teacher, normalize=normalize), [student]
        )
    expected = _oracle(student.double(), teacher.double(), normalize=normalize)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert torch.isfinite(grad).all()
    if normalize:
        assert grad[..., 0, :].abs().max() < 1e-7
    assert grad[..., 1:, :].all()


@NORMALIZE
@CHOICES
def test_pixels_of_weight_zero_may_hold_anything(normalize, choice, device):
    student, teacher = (_draw((1, 4, 3, 5), device=device, seed=s) for s in (1, 2))
    mask = torch.ones(1, 3, 5, dtype=torch.bool, device=device)
    mask[:, 1] = False
    kept = [x[:, :, [0, 2]].double() for x in (student, teacher)]
    student[:, :, 1], teacher[:, :, 1, 2:] = float("nan"), float("inf")
    with using(choice):
        value, (grad,) = loss_and_gradients(
            lambda s: feature_mse(s, teacher, mask, normalize=normalize), [student]
        )
    assert float(value) == pytest.approx(float(_oracle(*kept, normalize=normalize)), rel=1e-5)
    assert not grad[:, :, 1].any()
    assert torch.isfinite(grad).all()


@NORMALIZE
@CHOICES
def test_nothing_to_compare(normalize, choice, device):
    student, teacher = (_draw((2, 4, 3, 5), device=device, seed=s) for s in (1, 2))
    mask = torch.zeros(2, 1, 3, 5, device=device)
    for own, theirs, weights in ((student, teacher, mask), (student[:0], teacher[:0], mask[:0])):
        with using(choice):
            value, (grad,) = loss_and_gradients(
                lambda s, t=theirs, m=weights: feature_mse(s, t, m, normalize=normalize), [own]
            )
        assert float(value) == 0
        assert grad.shape == own.shape
        assert not grad.any()


@NORMALIZE
@pytest.mark.parametrize("kind", ["none", "float"])
def test_gradcheck_of_the_reference(normalize, kind):
    student, teacher = (_draw((2, 3, 2, 3), torch.float64, seed=s) for s in (1, 2))
    mask = _mask(kind, student.shape)
    assert torch.autograd.gradcheck(
        lambda s: feature_mse_reference(s, teacher, mask, normalize), student.requires_grad_()
    )


@NORMALIZE
def test_compiled_autocast_and_repeated(normalize, device):
    student, teacher = (_draw((2, 3, 9, 7), device=device, seed=s) for s in (1, 2))
    mask = _mask("bool", student.shape, device)

    def loss(own):
        return feature_mse(own, teacher, mask, normalize=normalize)

    for check in (check_compiled, check_autocast):
        check(loss, [student])
    with using("triton"):
        runs = [loss_and_gradients(loss, [student]) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1][0], runs[1][1][0])


def test_what_does_not_fit():
    ones = torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"student \(1, 2, 3, 3\), teacher \(1, 3, 3, 3\)"):
        feature_mse(ones, torch.ones(1, 3, 3, 3))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]: student \(2, 3, 3\), teacher"):
        feature_mse(ones[0], ones[0])
    with pytest.raises(ValueError, match=r"mask is \(1, 2, 3, 3\) .* maps \(1, 2, 3, 3\)"):
        feature_mse(ones, ones, ones)
    with pytest.raises(ValueError, match=r"mask is .* torch.int64 .* bool or floating point"):
        feature_mse(ones, ones, torch.ones(1, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        feature_mse(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        feature_mse(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 0 of 18, teacher 18 of 18"):
        feature_mse(ones, ones * float("nan"), check=True)
