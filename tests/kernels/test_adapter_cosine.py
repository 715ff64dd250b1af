"""Intra-PT against a float64 computation written from the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    check_autocast,
    check_compiled,
    check_kernel,
    loss_and_gradients,
    relative_rms,
)
from tolerances import GRADIENT
from torch.nn.functional import cosine_similarity

from kdcompile.kernels import _adapter_fold, _adapter_launch, _tune
from kdcompile.kernels._runtime import ran, using
from kdcompile.kernels.adapter_cosine import (
    adapter_cosine,
    adapter_cosine_reference,
    adapter_cosines,
)

# batch, student channels, height, width, teacher channels
SHAPES = [
    (1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (3, 16, 9, 1, 31), (1, 8, 13, 11, 8), (2, 20, 9, 8, 130),
]  # fmt: skip


def _inputs(shape, dtype=torch.float32, device="cpu", layout=torch.contiguous_format, seed=0):
    batch, narrow, height, width, wide = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    maps = draw(batch, narrow, height, width), draw(batch, wide, height, width).relu()
    student, teacher = (m.to(dtype).to(device, memory_format=layout) for m in maps)
    # rounded as the kernel rounds it: else a ReLU near 0 would be open here and shut there
    weight = (draw(wide, narrow) / narrow**0.5).to(dtype).float()
    return student, teacher, weight.to(device), draw(wide).to(device)


def _oracle(student, teacher, weight=None, bias=None, reduction="mean"):
    adapted = student
    if weight is not None:
        adapted = torch.einsum("oc,nchw->nohw", weight, student)
        adapted = torch.relu(adapted if bias is None else adapted + bias.view(1, -1, 1, 1))
    alive = (adapted.norm(dim=1) > 1e-6) & (teacher.norm(dim=1) > 1e-6)
    cosine = torch.where(alive, cosine_similarity(adapted, teacher, dim=1, eps=1e-12), 0.0)
    return (1 - cosine).mean() if reduction == "mean" else (1 - cosine).sum() / len(student)


def _check(student, teacher, *adapter, reduction="mean"):
    check_kernel(
        lambda s, *a: adapter_cosine(s, teacher, *a, reduction=reduction),
        lambda s, *a: _oracle(s, teacher.double(), *a, reduction=reduction),
        [student, *adapter],
        size=1.0 if reduction == "mean" else student[0, 0].numel(),
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape, dtype, layout, device):
    inputs = _inputs(shape, dtype, device, layout)
    _check(*inputs)
    _check(*inputs[:3], reduction="paper")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [1, 9, 64, 300])
def test_equal_widths_need_no_adapter(channels, dtype, layout, device):
    _, teacher, *_ = _inputs((2, 1, 5, 7, channels), dtype, device, layout)
    student = _inputs((2, channels, 5, 7, 1), dtype, device, layout, seed=1)[0]
    _check(student, teacher)


def test_student_and_teacher_in_two_formats(device):
    student, teacher, *adapter = _inputs((2, 3, 5, 7, 70), device=device)
    _check(student.contiguous(memory_format=torch.channels_last), teacher, *adapter)
    _check(student, teacher.contiguous(memory_format=torch.channels_last), *adapter)


@pytest.mark.parametrize("choice", range(5))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check(*_inputs((2, 3, 13, 11, 20), torch.bfloat16, device))
        _check(*_inputs((1, 5, 6, 7, 140), torch.float16, device))
        _check(*_inputs((1, 70, 6, 7, 140), torch.float32, device))
        _check(*(_inputs((1, 9, 6, 7, 9), torch.float16, device)[:2]))


# one tile; the same without a remainder; both steps in a program, and apart, with and without one
TAPS = [
    (2, 3, 5, 7, 4), (1, 16, 8, 8, 64), (1, 32, 8, 8, 128), (1, 20, 3, 3, 130), (1, 64, 8, 8, 128),
    (1, 70, 3, 2, 140),
]  # fmt: skip


def _taps(dtype, device):
    found = [_inputs(shape, dtype, device, seed=i) for i, shape in enumerate(TAPS)]
    return [list(side) for side in zip(*found, strict=True)]


def test_several_taps(dtype, device):
    reduction = "paper" if dtype == torch.bfloat16 else "mean"
    students, teachers, weights, biases = _taps(dtype, device)
    n = len(students)

    def own(*leaves):
        return leaves[:n], leaves[n : 2 * n], [*leaves[2 * n :], None]

    def kernel(*leaves):
        s, w, b = own(*leaves)
        return adapter_cosines(s, teachers, w, b, reduction)

    def oracle(*leaves):
        taps = zip(*own(*leaves), teachers, strict=True)
        losses = [_oracle(s, t.double(), w, b, reduction) for s, w, b, t in taps]
        return sum(losses) / (n if reduction == "mean" else 1)

    check_kernel(kernel, oracle, [*students, *weights, *biases[:-1]])


def test_taps_share_the_launches_of_their_sums(device, monkeypatch):
    """One launch a tap, one more where its two steps are apart, one for the sums, one backward."""
    found = []
    for name in ("whole_kernel", "wide_kernel", "weight_kernel"):
        _counted(monkeypatch, _adapter_launch, name, found)
    for name in ("fold_kernel", "taps_scale_kernel"):
        _counted(monkeypatch, _adapter_fold, name, found)
    students, teachers, weights, biases = _taps(torch.float16, device)
    leaves = [t.requires_grad_() for t in (*students, *weights, *biases)]
    with using("triton"):
        torch.autograd.grad(adapter_cosines(students, teachers, weights, biases), leaves)
    sums = ["fold_kernel", "taps_scale_kernel"]
    apart = ["wide_kernel", "weight_kernel"]
    assert found == ["whole_kernel"] * 2 + ["wide_kernel"] * 2 + apart * 2 + sums


def _counted(monkeypatch, module, name, found):
    """Note each launch of a kernel."""
    kernel = getattr(module, name)

    class Noted:
        def __getitem__(self, grid):
            found.append(name)
            return kernel[grid]

    monkeypatch.setattr(module, name, Noted())


def test_taps_of_two_types_are_refused(device):
    students, teachers, weights, biases = _taps(torch.float16, device)
    students[0], teachers[0] = students[0].float(), teachers[0].float()
    with pytest.raises(
        ValueError, match=r"maps of one type, not \['torch.float16', 'torch.float32"
    ):
        adapter_cosines(students, teachers, weights, biases)


@settings(max_examples=15)
@given(
    batch=st.integers(1, 3), narrow=st.integers(1, 20), height=st.integers(1, 9),
    width=st.integers(1, 9), wide=st.integers(1, 80), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(batch, narrow, height, width, wide, seed):
    student, teacher, *adapter = _inputs((batch, narrow, height, width, wide), seed=seed)
    _check(student, teacher + 0.1, *adapter)


def test_half_precision_survives_the_mean_over_the_benchmarks_pixels(device, monkeypatch):
    """1/N of 1.8 million pixels would flush the stored gradient; loss scaling must still help."""
    configs = [{"BP": 1 << 16, "PROGRAMS": 64, "num_warps": 4, "num_stages": 2}]
    if device.type == "cpu":  # the interpreter takes minutes with blocks for a GPU
        monkeypatch.setattr(_adapter_launch, "whole_configs", lambda *_: configs)
    student, teacher, weight, bias = _inputs((4, 2, 576, 768, 4), torch.float16, device)
    own = student.requires_grad_()
    with using("triton"):
        (found,) = torch.autograd.grad(65536 * adapter_cosine(own, teacher, weight, bias), own)
    with using("reference"):
        wide = student.detach().double().requires_grad_()
        loss = adapter_cosine(wide, teacher.double(), weight, bias)
        (truth,) = torch.autograd.grad(loss, wide)
    assert relative_rms(found, 65536 * truth) <= GRADIENT[torch.float16]
    flushed = (truth.half() == 0) & (truth != 0)
    assert flushed.sum() > 0.5 * (truth != 0).sum(), "the trap that this guards against"


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_zero_maps_have_a_whole_loss_and_no_gradient(choice, device):
    student, teacher, weight, bias = _inputs((2, 3, 5, 4, 6), device=device)
    with using(choice):
        for maps in ((torch.zeros_like(teacher), teacher), (teacher, torch.zeros_like(teacher))):
            value, (grad,) = loss_and_gradients(lambda s, t=maps[1]: adapter_cosine(s, t), maps[:1])
            assert float(value) == pytest.approx(1.0)
            assert not grad.any()
        value, gradients = loss_and_gradients(
            lambda s, w, b: adapter_cosine(s, teacher, w, b), [student, -weight.abs(), bias - 1e3]
        )
        assert float(value) == pytest.approx(1.0)
        assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_batch_of_nothing(choice, device):
    student, teacher, weight, bias = _inputs((0, 3, 5, 4, 6), device=device)
    with using(choice):
        value, gradients = loss_and_gradients(
            lambda s, w, b: adapter_cosine(s, teacher, w, b), [student, weight, bias]
        )
    assert float(value) == 0
    assert not any(g.any() for g in gradients)


def test_scale_of_the_features_does_not_matter(device):
    _, teacher, *_ = _inputs((2, 6, 5, 4, 6), device=device)
    student = teacher.flip(0) + 0.1
    for choice in ("triton", "reference"):
        with using(choice):
            loss = float(adapter_cosine(student, teacher))
            assert float(adapter_cosine(7 * student, 0.2 * teacher)) == pytest.approx(
                loss, rel=1e-5
            )
            assert float(adapter_cosine(student, student.clone())) == pytest.approx(0, abs=1e-6)


def test_a_kept_graph_gives_the_same_gradient_again(device):
    student, teacher, weight, bias = _inputs((2, 3, 5, 7, 4), torch.float16, device)
    own = [student.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    with using("triton"):
        loss = adapter_cosine(own[0], teacher, *own[1:])
        first = torch.autograd.grad(loss, own, retain_graph=True)
        second = torch.autograd.grad(loss, own)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradcheck_of_the_reference():
    student, teacher, weight, bias = (t.double() for t in _inputs((2, 3, 3, 2, 4)))
    leaves = [t.requires_grad_() for t in (student, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda s, w, b: adapter_cosine_reference(s, teacher + 0.1, w, b), leaves
    )


def test_compiled_and_autocast(device):
    student, teacher, weight, bias = _inputs((2, 3, 5, 7, 4), device=device)
    for check in (check_compiled, check_autocast):
        check(lambda s, w, b: adapter_cosine(s, teacher, w, b), [student, weight, bias])


def test_too_wide_for_the_kernel_is_said(device):
    student, teacher, *adapter = _inputs((1, 1030, 1, 2, 3), device=device)
    with using("triton"):
        adapter_cosine(student, teacher, *adapter)
    assert ran()["adapter_cosine"] == "reference: no kernel for over 1024 student channels"


@pytest.mark.parametrize(
    ("student", "teacher", "weight", "problem"),
    [
        ((1, 3, 4, 4), (1, 3, 4, 5), None, r"student \(1, 3, 4, 4\), teacher \(1, 3, 4, 5\)"),
        ((1, 3, 4, 4), (1, 5, 4, 4), None, "3 and 5 channels need an adapter"),
        ((1, 3, 4, 4), (1, 5, 4, 4), (3, 5), r"adapter is \(3, 5\), the maps need \(5, 3\)"),
    ],
)
def test_maps_that_do_not_fit(student, teacher, weight, problem):
    weight = None if weight is None else torch.ones(weight)
    with pytest.raises(ValueError, match=problem):
        adapter_cosine(torch.ones(student), torch.ones(teacher), weight)


def test_types_gradients_and_values_that_do_not_fit():
    ones = torch.ones(1, 3, 2, 2)
    spoiled = ones.clone()
    spoiled[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        adapter_cosine(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        adapter_cosine(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 1 of 12, teacher 0 of 12"):
        adapter_cosine(spoiled, ones, check=True)
    with pytest.raises(ValueError, match=r"bias is \(3,\)"):
        adapter_cosine(ones, ones, bias=torch.ones(3))
