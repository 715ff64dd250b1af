"""Fake quantisation against numpy, ONNX Runtime and the weights that calib/qdq.py stores."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check_autocast, check_compiled, in_types
from onnx import TensorProto, helper

from kdcompile.calib.qdq import quantise, weight_scales
from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.fake_quant import CONFIGS, fake_quant

SHAPES = [((), None), ((1,), 0), ((2050,), None), ((7, 13), 1), ((7, 13), 0), ((5, 3, 3, 3), 0),
          ((2, 5, 7, 11), 1), ((2, 5, 7, 11), -2), ((2, 64, 1, 1), 1), ((3, 1, 4, 4), 1),
          ((2, 3, 45, 47), 1), ((2, 3, 4, 5, 6), 2)]  # fmt: skip
CHOICES = ("triton", "reference")


def _draw(shape, dtype=torch.float32, device="cpu", seed=0):
    """A third of zeros, as behind a ReLU."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(values > -0.4, values, 0).to(dtype).to(device)


def _scales(shape, axis, device="cpu", seed=9):
    """Such that some values are clipped."""
    count = () if axis is None else (shape[axis],)
    draw = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return (0.01 + 0.02 * draw).to(device)


def _numpy(x, scale, axis, levels):
    """y in float32 and whether the gradient passes, by the formula."""
    s = scale.cpu().numpy()
    if axis is not None:
        s = s.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    i = np.rint(x.float().cpu().numpy() / s)
    y = (i.clip(-levels - 1, levels) * s).astype(np.float32)
    passes = (i >= -levels - 1) & (i <= levels)
    return torch.from_numpy(np.asarray(y)), torch.from_numpy(np.asarray(passes))


def _stored(y, x, choice):
    """y in x's type; Triton's interpreter cuts off what the compiler rounds in bfloat16."""
    if x.dtype == torch.bfloat16 and choice == "triton" and not x.is_cuda:
        y = (y.view(torch.int32) & -(1 << 16)).view(torch.float32)
    return y.to(x.dtype)


def _run(choice, x, scale, axis, levels):
    own = x.detach().requires_grad_()
    with using(choice):
        y = fake_quant(own, scale, axis=axis, levels=levels)
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(y)
        (grad,) = torch.autograd.grad(y, own, upstream)
    return y.detach(), grad, upstream


def _check(x, scale, axis=None, levels=127):
    expected, passes = _numpy(x, scale, axis, levels)
    for choice in CHOICES:
        y, grad, upstream = _run(choice, x, scale, axis, levels)
        assert y.dtype == grad.dtype == x.dtype
        assert y.stride() == grad.stride() == x.stride()
        assert torch.equal(y.cpu(), _stored(expected, x, choice)), choice
        assert torch.equal(grad.cpu(), torch.where(passes, upstream.cpu(), 0)), choice
        assert not (y.signbit() & (y == 0)).any()  # int8 has no -0


@pytest.mark.parametrize(("case", "dtype"), in_types(SHAPES, SHAPES[5:7]), ids=str)
def test_value_and_gradient(case, dtype, device):
    shape, axis = case
    _check(_draw(shape, dtype, device), _scales(shape, axis, device), axis)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3])
def test_channels_last(axis, dtype, device):
    shape = (2, 6, 17, 5)
    x = _draw(shape, dtype, device).contiguous(memory_format=torch.channels_last)
    _check(x, _scales(shape, axis, device), axis)


def test_upstream_in_another_format(device):
    x, scale = _draw((2, 6, 9, 5), device=device), torch.full((6,), 0.015, device=device)
    _, passes = _numpy(x, scale, 1, 127)
    upstream = _draw((2, 6, 9, 5), device=device, seed=1)
    for own, outer in (
        (x, upstream.contiguous(memory_format=torch.channels_last)),
        (x.contiguous(memory_format=torch.channels_last), upstream),
        (x, torch.ones((), device=device).expand(2, 6, 9, 5)),
    ):
        leaf = own.detach().requires_grad_()
        with using("triton"):
            (grad,) = torch.autograd.grad(fake_quant(leaf, scale, axis=1), leaf, outer)
        assert torch.equal(grad.cpu(), torch.where(passes, outer.cpu(), 0))


def test_strided_values(device):
    x = _draw((6, 8, 10, 12), device=device)[::2, 1:5, :, ::3]
    for axis in (None, 1, 3):
        with using("triton"):
            y = fake_quant(x, _scales(x.shape, axis, device), axis=axis)
        assert torch.equal(y.cpu(), _numpy(x, _scales(x.shape, axis), axis, 127)[0])


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    x = _draw((2, 70, 1, 31), device=device)
    with _tune.config(choice):
        for axis in (None, 0, 1):
            _check(x, _scales(x.shape, axis, device), axis)
        last = x.contiguous(memory_format=torch.channels_last)
        _check(last, _scales(x.shape, 1, device), 1)


@settings(max_examples=15)
@given(
    shape=st.lists(st.integers(1, 17), min_size=1, max_size=4), axis=st.integers(0, 3),
    whole=st.booleans(), levels=st.sampled_from([1, 2, 7, 8, 127, 4096]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape, axis, whole, levels, seed):
    axis = None if whole else axis % len(shape)
    scale = _scales(shape, axis, seed=seed) * 127 / levels
    x = _draw(shape, seed=seed)
    _check(x, scale, axis, levels)
    with using("triton"):
        once = fake_quant(x, scale, axis=axis, levels=levels)
        assert torch.equal(fake_quant(once, scale, axis=axis, levels=levels), once)


@pytest.mark.parametrize("levels", [7, 8, 127])
def test_halves_and_the_ends_of_the_range(levels, device):
    """Halves go to the even level, and so decide at the ends whether a gradient passes."""
    halves = torch.arange(-2 * levels - 6, 2 * levels + 7, device=device) / 2
    for nudge in (1 - 2**-23, 1.0, 1 + 2**-23):
        _check(halves * nudge * 0.25, torch.tensor(0.25, device=device), None, levels)
        _check(halves * nudge * 0.1, torch.tensor(0.1, device=device), None, levels)


def test_the_exported_pair(device):
    """ONNX Runtime's QuantizeLinear and DequantizeLinear give the same numbers, -128 included."""
    x, scale = 3 * _draw((2, 3, 9, 7), device=device), torch.full((), 0.017, device=device)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(x.shape)) for n in "xy"]
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [float(scale)]),
        helper.make_tensor("z", TensorProto.INT8, [], [0]),
    ]
    graph = helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    signed = x * torch.where(_draw(x.shape, device=device, seed=1) > 0, 1, -1)
    (expected,) = session.run(None, {"x": signed.cpu().numpy()})
    assert expected.min() == np.float32(-128) * np.float32(0.017)
    with using("triton"):
        y = fake_quant(signed, scale)
    np.testing.assert_array_equal(y.cpu().numpy(), expected)


def test_the_weights_that_are_exported(device):
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    scales = weight_scales(weight.numpy(), 0)
    stored = quantise(weight.numpy(), scales, 0) * scales.reshape(-1, 1, 1, 1)
    y, grad, upstream = _run(
        "triton", weight.to(device), torch.from_numpy(scales).to(device), 0, 127
    )
    np.testing.assert_array_equal(y.cpu().numpy(), stored)
    assert torch.equal(grad, upstream)  # the largest weight included


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_and_scales_without_a_grid(choice, dtype, device):
    infinity, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, infinity, -infinity, nan, 0.0]], device=device).to(dtype)
    y, grad, _ = _run(choice, x, torch.full((), 0.25, device=device), None, 127)
    assert y[0, :3].tolist() == [1.0, 31.75, -32.0]
    assert y.isnan().tolist() == [[False, False, False, True, False]]
    assert torch.equal(grad != 0, torch.tensor([[True, False, False, False, True]], device=device))
    for scale in (0.0, -1.0, nan, infinity):
        y, grad, _ = _run(choice, x, torch.full((), scale, device=device), None, 127)
        assert not y.any()
        assert not grad.any()


@pytest.mark.parametrize("choice", CHOICES)
def test_no_values(choice, device):
    x = torch.zeros(0, 3, device=device)
    y, grad, _ = _run(choice, x, torch.ones(3, device=device), 1, 127)
    assert y.shape == grad.shape == (0, 3)


def test_float64_stays_float64():
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = fake_quant(x, torch.tensor(0.5))
    assert y.dtype == torch.float64
    assert torch.equal(y, (x / 0.5).round() * 0.5)


def test_compiled_and_autocast(device):
    scale = _scales((2, 5), 1, device)
    for check in (check_compiled, check_autocast):
        check(lambda x: fake_quant(x, scale, axis=1), [_draw((2, 5, 9, 8), device=device)])


ONES, SCALE = torch.ones(2, 3), torch.ones(())


@pytest.mark.parametrize(
    ("x", "scale", "options", "problem"),
    [
        (ONES.long(), SCALE, {}, "x is torch.int64"),
        (ONES, SCALE, {"axis": 2}, r"axis is 2, x \(2, 3\)"),
        (ONES, SCALE, {"axis": 1}, r"scale is \(\) .* x \(2, 3\) with axis 1 needs \(3,\)"),
        (ONES, SCALE.expand(2), {"axis": -1}, r"scale is \(2,\) .* needs \(3,\)"),
        (ONES, SCALE.expand(3), {}, r"scale is \(3,\) .* needs \(\)"),
        (ONES, SCALE.double(), {}, r"scale is \(\) torch.float64"),
        (ONES, SCALE.to("meta"), {}, "x on cpu, scale on meta"),
        (ONES, SCALE, {"levels": 0}, "levels is 0"),
        (ONES, SCALE, {"levels": 1 << 20}, "from 1 to 32768"),
    ],
)
def test_what_does_not_fit(x, scale, options, problem):
    with pytest.raises(ValueError, match=problem):
        fake_quant(x, scale, **options)
