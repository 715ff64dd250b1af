"""Every operator of an ONNX file gives what ONNX Runtime gives."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdcompile.models.onnx_import import load_onnx
from kdcompile.models.onnx_import.values import OPERATORS
from kdcompile.onnx_graph.session import cpu_session

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.standard_normal((1, 4, 6, 8)).astype(np.float32)
TOKENS = RANDOM.standard_normal((1, 6, 8)).astype(np.float32)
ROWS = RANDOM.standard_normal((3, 8)).astype(np.float32)
TIME = RANDOM.standard_normal((5, 2, 3)).astype(np.float32)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


def file_of(path, nodes, inputs, constants=(), outputs=("y",), opset=17):
    """Write a network of nodes; its outputs have no shapes."""
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if opset > 21:
        model.ir_version = 10
    onnx.save(model, path)
    return path


# operator, input, constants (None where an optional one is left out), attributes, opset
CASES = [
    *[(name, IMAGE, [], {}, 20) for name in (
        "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign",
        "Sin", "Cos", "Atan", "Softsign", "Softplus", "HardSwish", "Mish", "Gelu", "LeakyRelu",
        "Elu", "Selu", "Celu", "HardSigmoid", "Identity", "GlobalAveragePool", "GlobalMaxPool",
        "Flatten", "Transpose", "LogSoftmax", "Softmax", "ThresholdedRelu", "Reciprocal",
    )],
    ("Gelu", IMAGE, [], {"approximate": "tanh"}, 20),
    ("HardSigmoid", IMAGE, [], {"alpha": 1 / 6}, 17),
    ("Softmax", IMAGE, [], {"axis": 1}, 11), ("Softmax", IMAGE, [], {"axis": 1}, 13),
    ("Flatten", IMAGE, [], {"axis": 2}, 17), ("Flatten", IMAGE, [], {"axis": 0}, 17),
    *[(name, IMAGE, [floats(4, 1, 1)], {}, 17)
      for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")],
    ("Add", IMAGE, [floats()], {}, 17), ("Div", IMAGE, [floats(1)], {}, 17),
    ("Pow", IMAGE, [np.float32(2.0)], {}, 17), ("Mod", IMAGE, [floats(8)], {"fmod": 1}, 17),
    ("Clip", IMAGE, [np.float32(0), np.float32(6)], {}, 17),
    ("Clip", IMAGE, [None, np.float32(0.5)], {}, 17), ("Clip", IMAGE, [], {"min": -0.5}, 10),
    ("Cast", IMAGE, [], {"to": TensorProto.INT64}, 17),
    ("Conv", IMAGE, [floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1]}, 17),
    ("Conv", IMAGE, [floats(6, 4, 3, 3)], {"pads": [0, 1, 2, 1], "strides": [2, 2]}, 17),
    ("Conv", IMAGE, [floats(4, 1, 3, 3)], {"group": 4, "auto_pad": "SAME_UPPER",
                                           "strides": [2, 2]}, 17),
    ("Conv", IMAGE, [floats(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}, 17),
    ("Conv", TOKENS, [floats(4, 6, 3)], {"auto_pad": "VALID"}, 17),
    ("ConvTranspose", IMAGE, [floats(4, 6, 3, 3), floats(6)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, 17),
    ("ConvTranspose", IMAGE, [floats(4, 6, 2, 2)], {"strides": [2, 2]}, 17),
    ("ConvTranspose", IMAGE, [floats(4, 6, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 0, 0]}, 17),
    ("Gemm", ROWS, [floats(8, 5), floats(5)], {"alpha": 0.5, "beta": 2.0}, 17),
    ("Gemm", ROWS, [floats(5, 8)], {"transB": 1}, 17),
    ("Gemm", ROWS, [floats(3, 5), floats(8, 5)], {"transA": 1}, 17),
    ("MatMul", TOKENS, [floats(8, 5)], {}, 17), ("MatMul", TOKENS, [floats(1, 8, 5)], {}, 17),
    ("BatchNormalization", IMAGE, [floats(4), floats(4), floats(4), floats(4) ** 2], {}, 15),
    ("InstanceNormalization", IMAGE, [floats(4), floats(4)], {"epsilon": 1e-3}, 17),
    ("LayerNormalization", TOKENS, [floats(8), floats(8)], {}, 17),
    ("LayerNormalization", IMAGE, [floats(6, 8)], {"axis": 2}, 17),
    ("GroupNormalization", IMAGE, [floats(4), floats(4)], {"num_groups": 2}, 21),
    ("RMSNormalization", TOKENS, [floats(8)], {}, 23),
    ("LRN", IMAGE, [], {"size": 3, "alpha": 0.1}, 17),
    ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 17),
    ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, 17),
    ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 17),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 17),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1],
                                "count_include_pad": 1}, 17),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}, 17),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}, 17),
    ("Pad", IMAGE, [ints(1, 2), None, ints(3)], {"mode": "edge"}, 18),
    ("Pad", IMAGE, [], {"pads": [0, 1, 0, 0, 0, 0, 0, 0], "value": 2.0}, 10),
    ("Resize", IMAGE, [None, np.array([1, 1, 2, 2], np.float32)],
     {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 17),
    ("Resize", IMAGE, [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 17),
    ("Resize", IMAGE, [None, None, ints(1, 4, 11, 5)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, 17),
    ("Resize", IMAGE, [None, None, ints(1, 4, 3, 4)], {}, 17),
    ("Resize", IMAGE, [None, None, ints(1, 4, 12, 16)], {"mode": "cubic"}, 17),
    ("Resize", IMAGE, [np.array([1, 1, 2, 2], np.float32)], {}, 10),
    ("Upsample", IMAGE, [np.array([1, 1, 3, 3], np.float32)], {}, 9),
    ("Reshape", IMAGE, [ints(1, -1)], {}, 17), ("Reshape", IMAGE, [ints(0, 2, -1, 8)], {}, 17),
    ("Reshape", TOKENS, [ints(1, 6, 2, 4)], {}, 17), ("Reshape", IMAGE, [ints(4, 48)], {}, 17),
    ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}, 17),
    ("Squeeze", TOKENS, [ints(0)], {}, 17), ("Squeeze", TOKENS, [], {"axes": [0]}, 11),
    ("Squeeze", TOKENS, [], {}, 17), ("Unsqueeze", TOKENS, [ints(1, -1)], {}, 17),
    ("Concat", TOKENS, [floats(1, 2, 8)], {"axis": 1}, 17),
    ("Expand", TOKENS, [ints(3, 1, 6, 1)], {}, 17),
    ("Slice", IMAGE, [ints(1, 0), ints(4, 6), ints(1, 3), ints(1, 2)], {}, 17),
    ("Slice", IMAGE, [ints(-1), ints(-(2**62)), ints(3), ints(-2)], {}, 17),
    ("Slice", IMAGE, [ints(2), ints(4), ints(1)], {}, 17),
    ("Slice", IMAGE, [], {"starts": [1], "ends": [2**62], "axes": [2]}, 9),
    ("Gather", IMAGE, [np.array(1, np.int64)], {"axis": 1}, 17),
    ("Gather", IMAGE, [np.array([[0, -1]], np.int64)], {"axis": 2}, 17),
    ("GatherElements", ROWS, [np.array([[0, 2]] * 3, np.int64)], {"axis": 1}, 17),
    ("Tile", TOKENS, [ints(1, 2, 1)], {}, 17),
    ("DepthToSpace", IMAGE, [], {"blocksize": 2}, 17),
    ("DepthToSpace", IMAGE, [], {"blocksize": 2, "mode": "CRD"}, 17),
    ("SpaceToDepth", IMAGE, [], {"blocksize": 2}, 17),
    *[(name, IMAGE, [], {"axes": [2, 3]}, 11) for name in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSumExp",
    )],
    ("ReduceMean", IMAGE, [ints(-1)], {"keepdims": 0}, 18), ("ReduceMax", IMAGE, [], {}, 17),
    ("ArgMax", IMAGE, [], {"axis": 1, "keepdims": 0}, 17), ("ArgMin", IMAGE, [], {"axis": -1}, 17),
    ("CumSum", IMAGE, [np.array(2, np.int64)], {}, 17),
    ("Trilu", IMAGE, [np.array(1, np.int64)], {"upper": 0}, 17),
    ("Einsum", TOKENS, [floats(8, 5)], {"equation": "btc,cd->btd"}, 17),
    ("LSTM", TIME, [floats(1, 16, 3), floats(1, 16, 4), floats(1, 32)], {"hidden_size": 4}, 17),
    ("LSTM", TIME, [floats(1, 16, 3), floats(1, 16, 4)],
     {"hidden_size": 4, "direction": "reverse"}, 17),
    ("LSTM", TIME, [floats(2, 16, 3), floats(2, 16, 4), floats(2, 32), None, floats(2, 2, 4),
                    floats(2, 2, 4)], {"hidden_size": 4, "direction": "bidirectional"}, 17),
    ("GRU", TIME, [floats(2, 12, 3), floats(2, 12, 4), floats(2, 24)],
     {"hidden_size": 4, "direction": "bidirectional", "linear_before_reset": 1}, 17),
    ("RNN", TIME, [floats(1, 4, 3), floats(1, 4, 4), floats(1, 8)],
     {"hidden_size": 4, "activations": ["Relu"]}, 17),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operator_gives_what_onnx_runtime_gives(case, tmp_path):
    name, x, given, attributes, opset = case
    names = ["x", *("" if one is None else f"c{i}" for i, one in enumerate(given))]
    constants = [(f"c{i}", np.asarray(one)) for i, one in enumerate(given) if one is not None]
    node = helper.make_node(name, names, ["y"], name="node", **attributes)
    path = file_of(tmp_path / "net.onnx", [node], [("x", x.shape)], constants, opset=opset)
    (expected,) = cpu_session(path, optimised=False).run(None, {"x": x})
    with torch.no_grad():
        got = load_onnx(path)(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-6)


def test_several_outputs(tmp_path):
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=2),
        helper.make_node("TopK", ["b", "two"], ["values", "places"]),
        helper.make_node("Where", ["mask", "a", "a"], ["w"]),
    ]
    constants = [("sizes", ints(3, 5)), ("two", ints(2)), ("mask", np.array([True, False, True]))]
    outputs = ["w", "values", "places"]
    path = file_of(tmp_path / "n.onnx", nodes, [("x", TOKENS.shape)], constants, outputs)
    expected = cpu_session(path).run(None, {"x": TOKENS})
    got = load_onnx(path)(torch.from_numpy(TOKENS))
    assert all(np.allclose(a, b.numpy()) for a, b in zip(expected, got, strict=True))


def test_most_operators_are_tried_here():
    tried = {case[0] for case in CASES} | {"Split", "TopK", "Where"}
    others = {
        "Acos", "And", "Asin", "Attention", "CastLike", "ConstantOfShape", "Cosh", "Dropout",
        "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Log", "Not", "Or",
        "Range", "Shape", "Sinh", "Size", "Sqrt", "Tan", "Xor",
    }  # fmt: skip
    assert set(OPERATORS) - tried == others
