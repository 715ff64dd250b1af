"""Cross-layer equalisation: the same function, equal ranges, and only where it may be done."""

import numpy as np
import pytest
from onnx import ModelProto, helper
from refine_networks import (
    PAD,
    badly_scaled,
    every_layer,
    model_of,
    node,
    photos,
    table_of,
    weights,
)

from kdcompile.calib.equalise import equalisable, equalise
from kdcompile.calib.keep_if_better import against
from kdcompile.calib.qdq import insert_qdq
from kdcompile.onnx_graph.graph import Graph, by_channel
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.session import cpu_session


def largest_difference(a: ModelProto, b: ModelProto) -> float:
    sessions = [cpu_session(model) for model in (a, b)]
    pairs = [[s.run(None, {"image": x})[0] for s in sessions] for x in photos(4)]
    return max(np.abs(u - v).max() / np.abs(u).max() for u, v in pairs)


@pytest.mark.parametrize("make", [badly_scaled, every_layer])
def test_the_function_is_the_same(make) -> None:
    model = make()
    before = model.SerializeToString()
    result, pairs = equalise(model)
    assert len(pairs) > 1
    assert model.SerializeToString() == before
    assert result.SerializeToString() != before
    assert largest_difference(model, result) < 1e-5


def test_every_kind_of_layer_is_paired() -> None:
    assert [(p.first.name, p.second.name) for p in equalisable(Graph(every_layer()))] == [
        ("plain", "grouped"),
        ("grouped", "up"),
        ("up", "far"),
        ("far", "gemm"),
        ("gemm", "matmul"),
    ]


@pytest.mark.parametrize("make", [badly_scaled, every_layer])
def test_ranges_become_equal(make) -> None:
    """At convergence sqrt(r1 r2) / r2 is 1: a channel has one range on both sides."""
    graph = Graph(equalise(make())[0])
    for pair in equalisable(graph):
        first, second = (
            np.abs(by_channel(layer, graph.array(layer.weight)))
            for layer in (pair.first, pair.second)
        )
        left = first.max(axis=(2, 3)).ravel()
        right = second.max(axis=(1, 3)).reshape(-1, pair.repeat).max(axis=1)
        np.testing.assert_allclose(left, right, rtol=0.01)


def test_badly_scaled_channels_quantise_well_afterwards() -> None:
    model = badly_scaled()
    judge = against(model, photos(8, seed=2))
    images = photos(8)
    before = judge(insert_qdq(model, table_of(model, images)))
    result, _ = equalise(model)
    after = judge(insert_qdq(result, table_of(result, images)))
    assert after.mean_db > before.mean_db + 8


def test_a_dead_channel_is_left() -> None:
    model = badly_scaled()
    graph = Graph(model)
    for name in ("w1", "b1"):
        values = graph.array(name)
        values[3] = 0
        graph.set(name, values)
    result, _ = equalise(model)
    assert all(np.isfinite(Graph(result).array(t.name)).all() for t in result.graph.initializer)
    assert largest_difference(model, result) < 1e-5


@pytest.mark.parametrize("between", ["Relu", "Clip", "Sigmoid", "two readers", "output", "shared"])
def test_only_homogeneous_functions_of_one_reader(between: str) -> None:
    values = weights(w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), w3=(1, 4, 1, 1), low=(), high=())
    op = between if between in ("Relu", "Clip", "Sigmoid") else "Relu"
    limits = ["low", "high"] if op == "Clip" else []
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], "one", **PAD),
        node(op, ["c1", *limits], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], "two", **PAD),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["y"], "out"),
    ]
    outputs = {"y": [1, 1, 16, 16]}
    if between == "two readers":
        nodes[3:4] = [node("Add", ["c2", "r1"], ["sum"]), node("Relu", ["sum"], ["r2"])]
    elif between == "output":
        outputs["r1"] = [1, 4, 16, 16]
    elif between == "shared":
        nodes[4:4] = [node("Conv", ["r2", "w2"], ["c3"], "again", **PAD)]
        nodes[5].input[0] = "c3"
    model = model_of(nodes, values, outputs)
    assert "two" in [layer.name for layer in quantised_layers(model)]
    assert len(equalise(model)[1]) == (1 if between == "Relu" else 0)


def test_slopes_must_be_constant() -> None:
    values = weights(w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), w3=(1, 4, 1, 1), slope=(4, 1, 1))
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], "one", **PAD),
        node("PRelu", ["c1", "slope"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], "two", **PAD),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["y"], "out"),
    ]
    model = model_of(nodes, values, {"y": [1, 1, 16, 16]})
    assert len(equalise(model)[1]) == 1
    assert largest_difference(model, equalise(model)[0]) < 1e-5
    given = helper.make_node("Relu", ["c1"], ["slopes"])
    model.graph.node.insert(1, given)
    model.graph.node[2].input[1] = "slopes"
    assert equalise(model)[1] == []
