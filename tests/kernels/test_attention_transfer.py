"""Attention transfer against a float64 computation written from the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    check_autocast,
    check_compiled,
    check_kernel,
    loss_and_gradients,
)

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.attention_transfer import (
    CONFIGS,
    attention_transfer,
    attention_transfer_reference,
)

MODULE = "kdcompile.kernels.attention_transfer"
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 1, 1, 1), (1, 1, 4, 5, 7), (2, 5, 3, 3, 7), (3, 67, 17, 5, 4)]
FORMATS = [(False, False), (True, True), (True, False), (False, True)]
MODES = pytest.mark.parametrize("mode", ["code", "paper"])
CHOICES = pytest.mark.parametrize("choice", ["triton", "reference"])


def _draw(shape, dtype=torch.float32, device="cpu", seed=0, last=False):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator).to(dtype).to(device)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


def _oracle(student, teacher, mode):
    distances = []
    for s, t in zip(student, teacher, strict=True):
        e, f = s.pow(2).mean(0).flatten(), t.pow(2).mean(0).flatten()
        q = e / e.pow(2).sum().sqrt() if e.any() else e
        r = f / f.pow(2).sum().sqrt() if f.any() else f
        distances.append((q - r).pow(2).sum())
    squared = torch.stack(distances)
    if mode == "code":
        return squared.mean() / student[0, 0].numel()
    far = squared > 1e-12
    return (squared * far + ~far).sqrt().mul(far).mean()


def _check(shape, dtype=torch.float32, device="cpu", formats=(False, False), mode="code", seed=1):
    n, own, theirs, h, w = shape
    student = _draw((n, own, h, w), dtype, device, seed, formats[0])
    teacher = _draw((n, theirs, h, w), dtype, device, seed + 1, formats[1])
    check_kernel(
        lambda s: attention_transfer(s, teacher, mode),
        lambda s: _oracle(s, teacher.double(), mode),
        [student],
        size=1 / (h * w) if mode == "code" else 1.0,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@MODES
def test_value_and_gradient(shape, last, mode, dtype, device):
    _check(shape, dtype, device, (last, last), mode)


@pytest.mark.parametrize("formats", FORMATS)
@MODES
def test_memory_formats_side_by_side(formats, mode, device):
    for shape in ((2, 5, 9, 3, 7), (1, 33, 1, 9, 5), (2, 1, 33, 4, 3)):
        _check(shape, torch.float32, device, formats, mode)


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        for formats in FORMATS[:3]:
            _check((1, 70, 300, 11, 13), torch.float32, device, formats)


@pytest.mark.parametrize("formats", FORMATS)
@MODES
def test_many_blocks(formats, mode, device, monkeypatch):
    """More than one block in each loop over channels, pixels, parts and images."""
    config = {"TILE": 32, "PIXELS": 16, "CHANNELS": 4, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(f"{MODULE}.CONFIGS", [config])
    monkeypatch.setattr(f"{MODULE}.PROGRAMS", 6)
    monkeypatch.setattr(f"{MODULE}.GAP", {"PIXELS": 16, "PARTS": 2})
    monkeypatch.setattr(f"{MODULE}.FINISH", {"IMAGES": 2, "BLOCKS": 2})
    _check((3, 5, 6, 5, 7), torch.float32, device, formats, mode)


@settings(max_examples=25)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9),
        st.integers(1, 40),
    ),
    formats=st.sampled_from(FORMATS), mode=st.sampled_from(["code", "paper"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape, formats, mode, seed):
    _check(shape, torch.float32, "cpu", formats, mode, seed)


@MODES
@CHOICES
def test_multiples_of_a_map_have_no_distance_and_no_gradient(mode, choice, device):
    student = _draw((2, 3, 5, 7), device=device)
    teacher = torch.cat([2 * student, -2 * student], 1)
    with using(choice):
        value, (grad,) = loss_and_gradients(
            lambda s: attention_transfer(s, teacher, mode), [student]
        )
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert grad.abs().max() < 1e-7


@MODES
@CHOICES
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_maps_of_zeros(mode, choice, side, device):
    student, teacher = _draw((2, 3, 4, 5), device=device), _draw((2, 4, 4, 5), seed=1).to(device)
    if side != "teacher":
        student[0] = 0
    if side != "student":
        teacher[0] = 0
    with using(choice):
        value, (grad,) = loss_and_gradients(
            lambda s: attention_transfer(s, teacher, mode), [student]
        )
    _, (truth,) = loss_and_gradients(
        lambda s: _oracle(s, teacher.double(), mode), [student.double()]
    )
    expected = _oracle(student.double(), teacher.double(), mode)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(grad[1].double(), truth[1], rtol=1e-4, atol=1e-7)
    assert grad[0].abs().max() < 1e-7


@pytest.mark.parametrize("scale", [1e-7, 60000.0])
@MODES
def test_the_whole_range_of_float16(scale, mode, device):
    student = (_draw((1, 4, 6, 5), seed=1).clamp(-1, 1) * scale).half().to(device)
    teacher = (_draw((1, 9, 6, 5), seed=2).clamp(-1, 1) * scale).half().to(device)
    with using("triton"):
        found = attention_transfer(student, teacher, mode)
    expected = _oracle(student.double(), teacher.double(), mode)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@CHOICES
def test_no_images(choice, device):
    empty = torch.zeros(0, 3, 4, 4, device=device)
    with using(choice):
        value, (grad,) = loss_and_gradients(lambda s: attention_transfer(s, empty), [empty])
    assert float(value) == 0
    assert grad.shape == (0, 3, 4, 4)


@MODES
def test_gradcheck_of_the_reference(mode):
    student, teacher = (_draw((2, 3, 2, 3), torch.float64, seed=s) for s in (1, 2))
    assert torch.autograd.gradcheck(
        lambda s: attention_transfer_reference(s, teacher, mode), student.requires_grad_()
    )


def test_compiled_autocast_and_repeated(device):
    student, teacher = _draw((2, 3, 9, 7), device=device), _draw((2, 5, 9, 7), seed=2).to(device)
    for check in (check_compiled, check_autocast):
        check(lambda s: attention_transfer(s, teacher, "paper"), [student])
    with using("triton"):
        runs = [
            loss_and_gradients(lambda s: attention_transfer(s, teacher), [student])
            for _ in range(2)
        ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1][0], runs[1][1][0])


def test_what_does_not_fit():
    ones = torch.ones(1, 2, 3, 3)
    for other in (torch.ones(2, 2, 3, 3), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 9)):
        with pytest.raises(ValueError, match=r"student \(1, 2, 3, 3\), teacher \("):
            attention_transfer(ones, other)
    with pytest.raises(ValueError, match="mode is 'papers'"):
        attention_transfer(ones, ones, "papers")
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        attention_transfer(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        attention_transfer(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 0 of 18, teacher 36 of 36"):
        attention_transfer(ones, torch.full((1, 4, 3, 3), float("inf")), check=True)
