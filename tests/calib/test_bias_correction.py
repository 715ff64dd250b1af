"""Bias correction: means agree afterwards, on layers with and without a bias."""

import numpy as np
import pytest
from onnx import ModelProto
from refine_networks import badly_scaled, every_layer, photos, table_of

from kdcompile.calib.bias import correct_bias
from kdcompile.calib.qdq import insert_qdq
from kdcompile.onnx_graph.graph import Graph, computing
from kdcompile.onnx_graph.session import cpu_session

IMAGES = photos(8)


def means(model: ModelProto, tensor: str, axis: int) -> np.ndarray:
    session = cpu_session(computing(model, [tensor]))
    values = [session.run(None, {"image": x})[0] for x in IMAGES]
    return np.concatenate(
        [np.moveaxis(v, axis, -1).reshape(-1, v.shape[axis]) for v in values]
    ).mean(0)


def quantiser(model: ModelProto, layers=None):
    table = table_of(model, IMAGES)
    return lambda changed: insert_qdq(changed, table, layers=layers)


@pytest.mark.parametrize(
    ("layer", "tensor", "axis"),
    [("plain", "r1", 1), ("up", "r3", 1), ("far", "r4", 1), ("gemm", "r5", 1), ("matmul", "r6", 1)],
)
def test_means_agree_afterwards(layer: str, tensor: str, axis: int) -> None:
    """As far as one step goes: where half of a channel is cut off, half of a shift is."""
    model = every_layer()
    quantise = quantiser(model)
    result, corrected = correct_bias(model, model, IMAGES, quantise)
    assert layer in corrected
    wanted = means(model, tensor, axis)
    before, after = (
        np.abs(means(quantise(m), tensor, axis) - wanted).sum() for m in (model, result)
    )
    assert after < 0.6 * before


def test_what_a_relu_cuts_off_moves_nothing() -> None:
    """A channel that is dead but for its quantisation error keeps its bias."""
    model = badly_scaled()
    graph = Graph(model)
    bias = graph.array("b2")
    bias[4] = -1e3
    graph.set("b2", bias)
    result, corrected = correct_bias(model, model, IMAGES, quantiser(model))
    assert "two" in corrected
    moved = Graph(result).array("b2") - bias
    assert moved[4] == 0
    assert moved.any()


def test_a_bias_is_added_where_there_was_none() -> None:
    model = every_layer()
    before = model.SerializeToString()
    result, _ = correct_bias(model, model, IMAGES, quantiser(model))
    assert model.SerializeToString() == before
    nodes = {n.name: n for n in result.graph.node}
    constants = Graph(result).constants
    assert all(n.input[2] in constants for n in nodes.values() if n.op_type.startswith("Conv"))
    follower = nodes["w6_bias"]
    assert (follower.op_type, follower.output[0]) == ("Add", "m")
    assert np.abs(Graph(result).array("w1_bias")).max() > 0


def test_layers_that_stay_in_float_are_left() -> None:
    model = badly_scaled()
    result, corrected = correct_bias(model, model, IMAGES, quantiser(model, ["two"]))
    assert corrected == ["two"]
    changed = [
        name
        for name in Graph(model).constants
        if (Graph(model).array(name) != Graph(result).array(name)).any()
    ]
    assert changed == ["b2"]
