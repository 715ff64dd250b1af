"""Learnt rounding: the columns it samples, codes that survive `insert_qdq`, errors that fall."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from refine_networks import PAD, every_layer, model_of, node, photos, table_of, weights

from kdcompile.calib.adaround import Problem, Settings, learn_rounding
from kdcompile.calib.bias import correct_bias
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.rounding import geometry, patches, round_weights
from kdcompile.onnx_graph.graph import Graph, by_channel
from kdcompile.onnx_graph.layers import quantised_layers, weighted_layers
from kdcompile.onnx_graph.session import cpu_session

IMAGES = photos(10)
FAST = Settings(steps=300, lr=3e-2)


@pytest.mark.parametrize(
    "options",
    [
        PAD,
        {"strides": [2, 1], "pads": [0, 1, 2, 1]},
        {"dilations": [3, 2], "pads": [3, 2, 3, 2]},
        {"group": 2, "strides": [2, 2], **PAD},
        {"group": 4, **PAD},
    ],
)
def test_columns_times_weights_is_the_convolution(options: dict) -> None:
    groups = options.get("group", 1)
    values = weights(w1=(8, 4 // groups, 3, 3), w2=(1, 8, 1, 1))
    nodes = [
        node("Conv", ["image", "w1"], ["c"], "one", **options),
        node("Conv", ["c", "w2"], ["y"], "out"),
    ]
    outputs = {"c": [1, 8, "h", "w"], "y": [1, 1, "h", "w"]}
    model = model_of(nodes, values, outputs, (1, 4, 9, 11))
    layer = weighted_layers(model)[0]
    graph = Graph(model)
    image = np.random.default_rng(0).standard_normal((1, 4, 9, 11)).astype(np.float32)
    wanted = cpu_session(model).run(["c"], {"image": image})[0]
    places = np.array([0, 5, wanted[0, 0].size - 1])
    read = patches(image, geometry(layer, graph), places, wanted.shape[-1])
    weight = by_channel(layer, graph.array("w1"))
    columns = read.reshape(groups, 4 // groups, 3, 9)
    found = np.einsum("goik,gink->gon", weight, columns).reshape(8, 3)
    np.testing.assert_allclose(found, wanted[0].reshape(8, -1)[:, places], rtol=1e-4, atol=1e-5)


def test_codes_survive_insert_qdq() -> None:
    """Weights on the grid of their scales: rounding to nearest gives the same codes and scales."""
    model = every_layer()
    table = table_of(model, IMAGES)
    short = Settings(steps=100, batch=64, lr=5e-2)
    result, rounded = round_weights(model, model, IMAGES, lambda m: insert_qdq(m, table), short)
    kept = {layer.layer for layer in rounded if layer.kept}
    assert [layer.layer for layer in rounded] == ["plain", "grouped", "far", "gemm", "matmul"]
    assert len(kept) >= 2
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in insert_qdq(m, table).graph.initializer}
        for m in (model, result)
    )
    graph = Graph(result)
    for layer in quantised_layers(result):
        codes, scales = (after[f"{layer.weight}{end}"] for end in ("_int8", "_scale"))
        np.testing.assert_allclose(scales, before[f"{layer.weight}_scale"], rtol=3e-7)
        moved = codes.astype(int) - before[f"{layer.weight}_int8"]
        assert np.abs(moved).max() <= 1
        assert moved.any() == (layer.name in kept)
        if layer.name in kept:
            shape = [-1 if i == layer.axis else 1 for i in range(codes.ndim)]
            stored = codes * scales.reshape(shape)
            np.testing.assert_allclose(stored, graph.array(layer.weight), rtol=1e-6)


def problem(n: int, seed: int, relu: bool = False) -> Problem:
    """Correlated inputs, as neighbouring pixels are, and weights in coarse steps."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, 24)).astype(np.float32)
    weight = rng.uniform(-6, 6, (1, 5, 24)).astype(np.float32)
    weight[..., 0], weight[..., 1] = 127, 0
    inputs = np.random.default_rng(seed).standard_normal((1, n, 4)).astype(np.float32) @ mix
    scale, bias = np.full((1, 5, 1), 0.1, np.float32), np.zeros((1, 1, 5), np.float32)
    targets = inputs @ (weight * scale).swapaxes(1, 2)
    return Problem(*(torch.from_numpy(a) for a in (weight, scale, bias, inputs, targets)), relu)


@pytest.mark.parametrize("relu", [False, True])
def test_learnt_rounding_beats_nearest_on_fresh_columns(relu: bool) -> None:
    codes = learn_rounding(problem(600, 1, relu), FAST)
    fresh = problem(600, 2, relu)
    assert fresh.error(codes) < 0.3 * fresh.error(fresh.weight.round())
    assert set(torch.unique(codes - fresh.weight.floor()).tolist()) <= {0.0, 1.0}
    assert (codes[..., 0] == 127).all()
    assert (codes[..., 1] == 0).all()


def test_the_regulariser_decides_every_weight() -> None:
    """Without it, weights stay between two codes and rounding them at the end undoes the gain."""
    fresh = problem(600, 2)
    with_it, without = (
        fresh.error(learn_rounding(problem(600, 1), Settings(steps=300, lr=3e-2, regulariser=r)))
        for r in (1.0, 0.0)
    )
    assert with_it < without


def test_a_dead_channel_stays_dead() -> None:
    given = problem(64, 1)
    given.weight[:] *= 1e-3  # a scale of 1 stands for a channel too small for a float32 scale
    assert not learn_rounding(given, FAST).any()


def test_learning_is_repeatable() -> None:
    first, second = (learn_rounding(problem(64, 1), Settings(steps=50)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_layer_that_gains_nothing_keeps_its_weights() -> None:
    """With no step taken, the codes are those of rounding to nearest."""
    model = every_layer()
    table = table_of(model, IMAGES)
    still = Settings(steps=0)
    result, rounded = round_weights(model, model, IMAGES, lambda m: insert_qdq(m, table), still)
    assert not any(layer.kept for layer in rounded)
    assert result == model


def test_rounding_follows_bias_correction() -> None:
    """A product that was given a bias is another tensor than the reference's, and is left."""
    model = every_layer()
    table = table_of(model, IMAGES)
    corrected, _ = correct_bias(model, model, IMAGES, lambda m: insert_qdq(m, table))
    short = Settings(steps=20, batch=64)
    _, rounded = round_weights(model, corrected, IMAGES, lambda m: insert_qdq(m, table), short)
    assert [layer.layer for layer in rounded] == ["plain", "grouped", "far", "gemm"]
