"""Operators as a target's limits see them, from small ONNX graphs."""

import numpy as np
from onnx import numpy_helper, parser

from kdcompile.latency_model.kernels import kernels_of, operators_of

SHAPE = [1, 8, 16, 16]
BODY = """
    a = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 1, 1]> (x, w)
    b = Relu (a)
    c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
    d = Resize <mode = "nearest"> (c, , scales)
    e = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (d, t)
    f = GlobalAveragePool (e)
    g = Flatten (f)
    y = Gemm <transB = 1> (g, m)
"""


def network():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 8, 16, 16] x) => (float[1, 10] y) '
        f"{{ {BODY} }}"
    )
    model = parser.parse_model(text)
    values = {
        "w": np.zeros((12, 8, 3, 3), np.float32),
        "t": np.zeros((12, 6, 2, 2), np.float32),
        "m": np.zeros((10, 6), np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return model


def test_each_operator_with_its_window_and_channels():
    found = {op.type: op for op in operators_of(network(), SHAPE)}
    assert list(found) == [
        "Conv", "Relu", "MaxPool", "Resize", "ConvTranspose", "GlobalAveragePool", "Gemm",
    ]  # fmt: skip
    conv = found["Conv"]
    assert (conv.kernel, conv.stride, conv.dilation, conv.padding) == (
        (3, 3), (2, 2), (1, 1), (1, 1),
    )  # fmt: skip
    assert (conv.in_channels, conv.out_channels, conv.groups) == (8, 12, 1)
    assert found["MaxPool"].padding == (0, 0)
    assert found["Resize"].factor == (2.0, 2.0)
    assert found["GlobalAveragePool"].kernel == found["ConvTranspose"].shape[2:]
    assert (found["Gemm"].in_channels, found["Gemm"].out_channels) == (6, 10)
    assert found["Gemm"].weight


def test_the_multiply_adds_are_those_of_the_kernels():
    model = network()
    assert sum(o.macs for o in operators_of(model, SHAPE)) == sum(
        k.macs for k in kernels_of(model, SHAPE)
    )


def test_a_product_of_two_computed_sides_has_no_weight():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[4, 8] x) => (float[4, 4] y) {
        a = Transpose <perm = [1, 0]> (x)
        y = MatMul (x, a)
    }"""
    product = operators_of(parser.parse_model(text), [4, 8])[-1]
    assert (product.weight, product.macs) == (False, 4 * 4 * 8)


def test_a_view_before_a_resize_or_pooling_leaves_their_shapes():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 64, 4] x) => (float[1, 8, 1, 1] y) {
        a = Reshape (x, shape)
        b = Resize <mode = "nearest"> (a, , scales)
        c = Reshape (b, wide)
        y = GlobalAveragePool (c)
    }"""
    model = parser.parse_model(text)
    for name, values in (("shape", [1, 8, 8, 4]), ("wide", [1, 8, 32, 2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    scales = np.array([1, 1, 2, 1], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(scales, "scales"))
    resize, pool = operators_of(model, [1, 64, 4])
    assert resize.factor == (2.0, 1.0)
    assert pool.kernel == (32, 2)
