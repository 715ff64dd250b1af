"""The matrix products that convolutions become, from kernels of ONNX files."""

import math

import pytest
from onnx import TensorProto, helper

from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.workload import Product, product_of

IMAGE = (2, 16, 5, 7)


def kernel(op, weight, out_sides, **attributes):
    """The one kernel of a layer on IMAGE."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, weight, [0.0] * math.prod(weight))
    out = weight[1] if op == "ConvTranspose" else weight[0]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [IMAGE[0], out, *out_sides])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (found,) = kernels_of(model, IMAGE)
    return found


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_a_transposed_convolution_gives_each_input_pixel_a_window_of_outputs(kernel_size):
    """x (M input pixels by 16) times (16 by 8 outputs for each place of the window)."""
    sides = [2 * (side - 1) + kernel_size for side in IMAGE[2:]]
    window = [kernel_size, kernel_size]
    found = kernel("ConvTranspose", [16, 8, *window], sides, strides=[2, 2])
    assert found.kind == "transposed"
    assert product_of(found, 8) == Product(2 * 5 * 7, 8 * kernel_size**2, 16, 1)


def test_a_convolution_sums_a_window_of_inputs_for_each_output_pixel():
    found = kernel("Conv", [24, 16, 3, 3], IMAGE[2:], pads=[1, 1, 1, 1])
    assert found.kind == "conv"
    assert product_of(found, 8) == Product(2 * 5 * 7, 24, 16 * 9, 1)
