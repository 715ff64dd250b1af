"""Small ONNX networks to refine: badly scaled channels, and each kind of layer."""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.calib.calibrate import calibrate

node = helper.make_node
PAD = {"pads": [1, 1, 1, 1]}


def model_of(
    nodes: list[NodeProto],
    constants: dict[str, np.ndarray],
    outputs: dict[str, list[int]],
    image: tuple[int, ...] = (1, 3, 16, 16),
) -> ModelProto:
    """A checked model whose input is `image`."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("image", TensorProto.FLOAT, image)],
        [value(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.float32(v), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Seeded normal values with the variance that keeps a ReLU network's scale."""
    rng = np.random.default_rng(5)
    return {
        name: rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:] or (50,)))
        for name, shape in shapes.items()
    }


def badly_scaled(spread: float = 1.5) -> ModelProto:
    """conv, pool, depthwise, conv: factors on their channels cancel in the next layer."""
    values = weights(
        w1=(8, 3, 3, 3), b1=(8,), wd=(8, 1, 3, 3), w2=(8, 8, 3, 3), b2=(8,), w3=(1, 8, 1, 1)
    )
    one, two = np.exp(spread * np.random.default_rng(2).standard_normal((2, 8, 1, 1, 1)))
    values["w1"] *= one
    values["b1"] *= one.ravel()
    values["wd"] *= two / one
    values["w2"] /= two[None, :, 0]
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], "one", **PAD),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "wd"], ["cd"], "depthwise", group=8, **PAD),
        node("Relu", ["cd"], ["rd"]),
        node("Conv", ["rd", "w2", "b2"], ["c2"], "two", **PAD),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["y"], "out"),
    ]
    return model_of(nodes, values, {"y": [1, 1, 8, 8]})


def every_layer() -> ModelProto:
    """Grouped, transposed, strided and dilated convolutions, then matrix products."""
    values = weights(
        w1=(6, 3, 3, 3), w2=(6, 2, 3, 3), b2=(6,), w3=(6, 2, 2, 2), w4=(4, 4, 3, 3),
        b4=(4,), w5=(10, 64), b5=(10,), w6=(10, 8), w7=(8, 2),
    )  # fmt: skip
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], "plain", strides=[2, 2], **PAD),
        node("LeakyRelu", ["c1"], ["r1"], alpha=0.1),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "grouped", group=3, **PAD),
        node("Relu", ["c2"], ["r2"]),
        node("ConvTranspose", ["r2", "w3"], ["c3"], "up", group=2, strides=[2, 2]),
        node("Relu", ["c3"], ["r3"]),
        node("Conv", ["r3", "w4", "b4"], ["c4"], "far", dilations=[3, 3], pads=[1, 2, 3, 2]),
        node("Relu", ["c4"], ["r4"]),
        node("AveragePool", ["r4"], ["p4"], kernel_shape=[3, 3], strides=[3, 3]),
        node("Flatten", ["p4"], ["f"]),
        node("Gemm", ["f", "w5", "b5"], ["g"], "gemm", transB=1),
        node("Relu", ["g"], ["r5"]),
        node("MatMul", ["r5", "w6"], ["m"], "matmul"),
        node("Relu", ["m"], ["r6"]),
        node("MatMul", ["r6", "w7"], ["y"], "out"),
    ]
    return model_of(nodes, values, {"y": [1, 2]})


def photos(n: int, seed: int = 1) -> list[np.ndarray]:
    """Smooth images, whose neighbouring pixels resemble each other as a photo's do."""
    noise = np.random.default_rng(seed).standard_normal((n, 1, 3, 20, 20))
    for axis in (3, 4):
        noise = sum(np.roll(noise, shift, axis) for shift in range(5)) / 2
    return list(np.float32(noise[..., :16, :16] + 0.3))


def table_of(model: ModelProto, images: list[np.ndarray], calibrator: str = "minmax"):
    """A calibration table of some images."""
    names = [(str(i), "0" * 64) for i in range(len(images))]
    return calibrate(model, "f" * 64, images, names, calibrator)
