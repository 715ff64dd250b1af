"""Normalisation layers in ONNX: the operator where it is read, and float16 that does not overflow.

Float16 is computed by ONNX's reference evaluator, which rounds every result to it; ONNX Runtime's
CPU provider computes in float32 between casts, and would show no overflow.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from kdcompile import targets
from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.mixed import mixed_model
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.onnx_graph.graph import attributes
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.norms import squares
from kdcompile.onnx_graph.opset import at_opset, opset_of
from kdcompile.onnx_graph.session import run_onnx
from kdcompile.onnx_graph.shapes import element_types

FIXED = ([1, 3, 4, 4],) * 3
SPREAD = 400.0  # of what reaches the norm: its square is over 65504, itself far below


class Tokens(nn.Module):
    """Tokens of large values, a norm of the last axis, a classifier."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 1)
        self.norm = norm
        self.between, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.normal_(self.embed.weight, std=SPREAD)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.embed(image).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.between(tokens).relu().mean(1))
        return logits


class WrittenOut(nn.Module):
    """A layer norm as hand-written code has it."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        if self.root == "pow":
            variance = centred.pow(2).mean(-1, keepdim=True)
            return centred / torch.sqrt(variance + 1e-6)
        if self.root == "rsqrt":
            variance = (centred * centred).mean(-1, keepdim=True)
            return centred * torch.rsqrt(variance + 1e-6)
        return nn.functional.normalize(centred, dim=-1)


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(8),
    "RMSNorm": lambda: nn.RMSNorm(8, eps=1e-6),
    "pow": lambda: WrittenOut("pow"),
    "rsqrt": lambda: WrittenOut("rsqrt"),
    "normalize": lambda: WrittenOut("normalize"),
}


def exported(norm: str, folder: Path, opset: int) -> tuple[nn.Module, ModelProto]:
    torch.manual_seed(0)
    net = Tokens(NORMS[norm]()).eval()
    return net, onnx_from_module(net, folder / "a.onnx", FIXED, opset, 8, "logits")


def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 4, 4), dtype=np.float32)


def in_half(model: ModelProto) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return ReferenceEvaluator(model).run(None, {"image": image()})[0]


def off(found: np.ndarray, net: nn.Module) -> float:
    with torch.inference_mode():
        true = net(torch.from_numpy(image())).numpy()
    return float(np.abs(found - true).max() / np.abs(true).max())


@pytest.mark.parametrize("opset", [17, 18])
def test_a_layer_norm_is_one_operator(tmp_path: Path, opset: int) -> None:
    net, model = exported("LayerNorm", tmp_path, opset)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (opset_of(model), kinds["LayerNormalization"]) == (opset, 1)
    assert not {"Pow", "Sqrt", "Sub", "Div"} & set(kinds)
    assert off(run_onnx(model, image()), net) < 1e-5
    (norm,) = [n for n in to_fp16(model).graph.node if n.op_type == "LayerNormalization"]
    assert attributes(norm).get("stash_type", 1) == 1  # its mean and variance are float32's
    assert squares(model) == set()


def test_a_layer_norm_for_tensorrt_8_5_is_written_out(tmp_path: Path) -> None:
    """Its parser has no importer for the operator (onnx-tensorrt's changelog)."""
    opset = targets.load("jetson-agx-xavier").max_opset
    net, model = exported("LayerNorm", tmp_path, opset)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert opset_of(model) == opset == 16
    assert not kinds["LayerNormalization"]
    assert kinds["Sqrt"] == 1
    assert off(run_onnx(model, image()), net) < 1e-5
    assert off(in_half(to_fp16(model)), net) < 0.01


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "LayerNorm"])
def test_sums_of_squares_stay_float32(
    tmp_path: Path, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, model = exported(norm, tmp_path, 17)
    assert off(in_half(to_fp16(model)), net) < 0.01
    monkeypatch.setattr("kdcompile.onnx_graph.fp16.squares", lambda _: set())
    assert not off(in_half(to_fp16(model)), net) < 0.01  # what would be without it


def test_only_what_computes_with_squares_stays_float32(tmp_path: Path) -> None:
    _, model = exported("RMSNorm", tmp_path, 17)
    kept = squares(model)
    kinds = [node.op_type for node in model.graph.node if node.output[0] in kept]
    assert kinds == ["Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal"]
    half = to_fp16(model)
    single = [node.op_type for node in half.graph.node if node.output[0] in kept]
    assert single == kinds  # by their own names: the others' tensors are named anew
    weights = {t.data_type for t in half.graph.initializer if len(t.dims) > 1}
    assert weights == {TensorProto.FLOAT16}


def test_a_network_without_norms_has_none(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert not squares(onnx_from_module(net, tmp_path / "a.onnx", FIXED, 17, 8, "logits"))


def test_a_mixed_network_keeps_them_too(tmp_path: Path) -> None:
    _, model = exported("pow", tmp_path, 17)
    table = calibrate(model, "f" * 64, [image()], [("a", "0" * 64)], "minmax")
    mixed = mixed_model(model, table, "int8", [quantised_layers(model)[-1].name])
    assert {"QuantizeLinear", "Cast"} <= {node.op_type for node in mixed.graph.node}
    types = element_types(mixed)
    assert {types[name] for name in squares(model)} == {TensorProto.FLOAT}
    assert np.isfinite(run_onnx(mixed, image())).all()


def test_layer_norms_without_a_bias_and_of_two_axes_are_written_out() -> None:
    rng = np.random.default_rng(1)
    scale = rng.standard_normal((3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("LayerNormalization", ["image", "s"], ["a"], axis=-2, epsilon=0.1),
        helper.make_node("Relu", ["a"], ["out"]),
    ]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes, "g", [value("image", TensorProto.FLOAT, [2, 3, 4])],
        [value("out", TensorProto.FLOAT, [2, 3, 4])], [numpy_helper.from_array(scale, "s")],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = rng.standard_normal((2, 3, 4), dtype=np.float32)
    older = at_opset(model, 16, 8)
    assert "LayerNormalization" not in {node.op_type for node in older.graph.node}
    np.testing.assert_allclose(run_onnx(older, x), run_onnx(model, x), atol=1e-5)
    onnx.checker.check_model(older, full_check=True)
