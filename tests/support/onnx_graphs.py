"""Small ONNX networks written by hand, their calibration tables, and images for them."""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.table import CalibrationTable

node = helper.make_node


class Graph:
    """Collects nodes and random weights; layer `x` has weight `x_w` and gives tensor `x`."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def conv(self, name: str, data: str, into: int, out: int, size: int = 3) -> str:
        values = self.rng.standard_normal((out, into, size, size)) * np.sqrt(2 / into / size**2)
        self.weights[f"{name}_w"] = values.astype(np.float32)
        self.weights[f"{name}_b"] = (0.1 * self.rng.standard_normal(out)).astype(np.float32)
        pads = [size // 2] * 4
        self.nodes.append(node("Conv", [data, f"{name}_w", f"{name}_b"], [name], name, pads=pads))
        return name

    def apply(self, operator: str, *data: str, **attributes: object) -> str:
        name = f"{operator.lower()}_of_{'_'.join(data)}"
        self.nodes.append(node(operator, list(data), [name], name, **attributes))
        return name

    def model(self, output: str, channels: int = 3, opset: int = 17) -> ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("image", TensorProto.FLOAT, [1, channels, 16, 16])],
            [value(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        imports = [helper.make_opsetid("", opset)]
        made = helper.make_model(graph, opset_imports=imports, ir_version=8)
        made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
        onnx.checker.check_model(made, full_check=True)
        return made


def chain(layers: int = 4, width: int = 8, outlier: int | None = None) -> ModelProto:
    """`c0`, relu, `c1`, ... and a 1x1 output layer `out`.

    The layer of number `outlier` reads a channel 300 times as large as the others, and weighs it
    by as much less, so that one scale for all of its input serves none of the others.
    """
    graph = Graph()
    data, into = "image", 3
    for i in range(layers):
        data, into = graph.apply("Relu", graph.conv(f"c{i}", data, into, width)), width
    if outlier is not None:
        graph.weights[f"c{outlier - 1}_w"][0] *= 300
        graph.weights[f"c{outlier - 1}_b"][0] *= 300
        graph.weights[f"c{outlier}_w"][:, 0] /= 300
    return graph.model(graph.conv("out", data, into, 1, 1))


def residual() -> ModelProto:
    """`stem`, then two blocks that add to what they read, a pool between them, then `out`."""
    graph = Graph(1)
    data = graph.apply("Relu", graph.conv("stem", "image", 3, 8))
    for block in ("a", "b"):
        inner = graph.apply("Relu", graph.conv(f"{block}1", data, 8, 8))
        joined = graph.apply("Add", graph.conv(f"{block}2", inner, 8, 8), data)
        data = graph.apply("Relu", joined)
        if block == "a":
            data = graph.apply("MaxPool", data, kernel_shape=[2, 2], strides=[2, 2])
    return graph.model(graph.conv("out", data, 8, 1, 1))


def branches() -> ModelProto:
    """`left` and `right` on one tensor of `stem`, concatenated before `mid`, upsampled, `out`."""
    graph = Graph(2)
    graph.weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    stem = graph.apply("Relu", graph.conv("stem", "image", 3, 8))
    sides = [graph.apply("Relu", graph.conv(side, stem, 8, 8)) for side in ("left", "right")]
    mid = graph.apply("Relu", graph.conv("mid", graph.apply("Concat", *sides, axis=1), 16, 8))
    graph.nodes.append(node("Resize", [mid, "", "scales"], ["up"], "up", mode="nearest"))
    return graph.model(graph.conv("out", "up", 8, 1, 1))


def images(n: int = 4, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal((1, channels, 16, 16), dtype=np.float32) for _ in range(n)]


def table_of(model: ModelProto) -> CalibrationTable:
    names = [(f"p{i}", "0" * 64) for i in range(4)]
    return calibrate(model, "f" * 64, images(), names, "minmax")
