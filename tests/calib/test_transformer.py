"""Where the Q/DQ pairs of a transformer's block stand: at its linear layers and nowhere else.

Quantised residual adds take ViT-B/16 from 85 % to under 5 %, linear layers alone cost 0.7 points
(onnxsim, scripts/nvidia/README.md); attention's products are left to the half-precision kernel
that computes all of attention at once.
"""

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.mixed import mixed_model
from kdcompile.calib.precision_regions import Junctions
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.residual import residual_branches
from kdcompile.calib.table import CalibrationTable
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.shapes import element_types

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    """A block of a ViT between a patch embedding and a classifier; its norms first, or last."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.patch, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 4)
        self.one, self.two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def attention(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        joined: Tensor = self.project(y.transpose(1, 2).reshape(n, t, WIDTH))
        return joined

    def mlp(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(functional.gelu(self.wide(x)))
        return y

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        if self.norm_first:
            x = x + self.attention(self.one(x))
            x = x + self.mlp(self.two(x))
        else:
            x = self.one(x + self.attention(x))
            x = self.two(x + self.mlp(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


@pytest.fixture(scope="module", params=[True, False], ids=["norm first", "norm last"])
def block(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelProto, CalibrationTable]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("block") / "a.onnx"
    net = Block(request.param).eval()
    model = onnx_from_module(net, path, ([1, 3, 16, 16],) * 3, 17, 8, "logits")
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    return model, calibrate(model, "f" * 64, [image], [("a", "0" * 64)], "minmax")


def test_pairs_are_at_linear_layers_alone(block: tuple[ModelProto, CalibrationTable]) -> None:
    model = insert_qdq(*block)
    made = {name: node for node in model.graph.node for name in node.output}
    readers = [
        node
        for node in model.graph.node
        if any(made[n].op_type == "DequantizeLinear" for n in node.input if n in made)
    ]
    assert sum(node.op_type == "Conv" for node in readers) == 1  # the patch embedding
    assert len(readers) == 5  # with qkv, project, wide and narrow; the head is in float
    constants = {t.name for t in model.graph.initializer}
    for node in readers:
        assert node.op_type in {"Conv", "Gemm", "MatMul"}
        kinds = [made[name].op_type for name in node.input[:2]]
        assert kinds == ["DequantizeLinear"] * 2
        assert made[node.input[1]].input[0] in constants  # by a weight, no activation


def test_nothing_is_quantised_on_its_way_into_a_sum_a_norm_or_a_product(
    block: tuple[ModelProto, CalibrationTable],
) -> None:
    model = insert_qdq(*block)
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name for t in model.graph.initializer}
    seen = set()
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" and not any(
            made[n].op_type == "DequantizeLinear" for n in node.input if n in made
        )
        if is_product or node.op_type in {"Add", "LayerNormalization", "Softmax", "Erf", "Gelu"}:
            seen.add(node.op_type)
            waiting = [name for name in node.input if name not in constants]
            while waiting:  # back to the nodes that compute
                before = made.get(waiting.pop())
                if before is None or before.op_type in {"Gemm", "MatMul", "Conv", "Add"}:
                    continue
                assert before.op_type not in {"QuantizeLinear", "DequantizeLinear"}
                waiting += [name for name in before.input if name not in constants]
    assert {"Add", "LayerNormalization", "Softmax", "MatMul"} <= seen


def test_attention_is_half_precision_in_a_mixed_network(
    block: tuple[ModelProto, CalibrationTable],
) -> None:
    model, table = block
    names = [layer.name for layer in quantised_layers(model)]
    products = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Softmax" or (node.op_type == "MatMul" and _both_computed(model, node))
    }
    assert len(products) == 3
    assert not products & Junctions(model).float32_nodes(names)
    mixed = mixed_model(model, table, "int8", names)
    types = element_types(mixed)
    assert {types[f"{name}_fp16"] for name in products} == {TensorProto.FLOAT16}


def test_no_sum_of_a_transformer_gets_a_pair(block: tuple[ModelProto, CalibrationTable]) -> None:
    model, table = block
    names = [layer.name for layer in quantised_layers(model)]
    every = {name for node in model.graph.node for name in node.output} | set(table.tensors)
    assert residual_branches(model, names, every) == {}


def _both_computed(model: ModelProto, node: object) -> bool:
    constants = {t.name for t in model.graph.initializer}
    return not constants & set(node.input)  # type: ignore[attr-defined]
