"""What int8 costs in each layer, alone and left out."""

import json
import weakref

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import Graph, branches, chain, images, residual, table_of

from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.sensitivity import (
    Outcome,
    Sensitivity,
    evaluator,
    measure_sensitivity,
    photo_evaluator,
)
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.onnx_graph.layers import count_macs, layer_macs
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.tasks.agreement import pooled_sqnr
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

SHAPE = [1, 3, 16, 16]


def judge(model: ModelProto):
    truth = [0.0] * len(images())

    def metric(outputs) -> float:
        return float(np.mean([abs(o.sum() - t) for o, t in zip(outputs, truth, strict=True)]))

    return evaluator(model, lambda: iter(images()), metric)


def quantised_in(model: ModelProto) -> set[str]:
    made = {name: n.op_type for n in model.graph.node for name in n.output}
    return {
        n.name
        for n in model.graph.node
        if n.op_type == "Conv" and made.get(n.input[0]) == "DequantizeLinear"
    }


def test_a_planted_outlier_ranks_first() -> None:
    model = chain(5, outlier=3)
    found = measure_sensitivity(model, table_of(model), judge(model), SHAPE, 4)
    first, second = found.layers[:2]
    assert first.layer == "c3"
    assert first.alone.sqnr_db < second.alone.sqnr_db - 6
    assert first.without.sqnr_db > found.int8.sqnr_db + 6
    assert found.benefit(first) > 0.7 > max(found.benefit(entry) for entry in found.layers[1:])
    assert found.fp32.sqnr_db == 200.0


def test_each_layer_is_judged_alone_and_left_out() -> None:
    model = branches()
    seen: list[set[str]] = []

    def evaluate(candidate: ModelProto) -> Outcome:
        seen.append(quantised_in(candidate))
        return Outcome(float(len(seen[-1])), -float(len(seen[-1])))

    found = measure_sensitivity(model, table_of(model), evaluate, SHAPE, 4)
    names = {"stem", "left", "right", "mid"}
    assert len(seen) == 2 * len(names) + 2
    assert sorted(map(sorted, seen)) == sorted(
        map(sorted, [set(), names, *({n} for n in names), *(names - {n} for n in names)])
    )
    assert all(entry.alone.metric == 1 and entry.without.metric == 3 for entry in found.layers)
    assert (found.fp32.metric, found.int8.metric) == (0, 4)


def test_shares_of_macs_and_json() -> None:
    model = residual()
    found = measure_sensitivity(model, table_of(model), judge(model), SHAPE, 4)
    macs = layer_macs(model, SHAPE)
    assert sum(macs.values()) == count_macs(model, SHAPE)
    assert macs["stem"] == 8 * 3 * 9 * 256
    assert macs["b1"] == 8 * 8 * 9 * 64  # after the pool
    assert sum(e.macs_share for e in found.layers) == pytest.approx(
        1 - macs["out"] / sum(macs.values())
    )
    assert Sensitivity.from_json(json.loads(json.dumps(found.to_json()))) == found
    ranks = [entry.alone.sqnr_db for entry in found.layers]
    assert ranks == sorted(ranks)


def test_more_layers_in_int8_cost_more() -> None:
    model, evaluate = residual(), judge(residual())
    table = table_of(model)
    found = measure_sensitivity(model, table, evaluate, SHAPE, 4)
    assert all(entry.alone.sqnr_db > found.int8.sqnr_db for entry in found.layers)
    assert all(entry.alone.sqnr_db < 100 for entry in found.layers)
    assert evaluate(insert_qdq(model, table, layers=[])).sqnr_db == 200.0


def test_pairs_are_computed_as_they_are_written() -> None:
    """As without any optimisation: by default ONNX Runtime rounds biases to int32 as well."""
    model = residual()
    paired = insert_qdq(model, table_of(model))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(paired.SerializeToString(), options)
    expected = [plain.run(None, {"image": image})[0] for image in images()]
    found = [
        cpu_session(paired, as_written=True).run(None, {"image": image})[0] for image in images()
    ]
    assert pooled_sqnr(expected, found) > 100


def test_images_are_read_anew_and_never_all_at_once() -> None:
    model = chain(2)
    live, most, rounds = [], 0, 0

    def stream():
        nonlocal most, rounds
        rounds += 1
        for i in range(8):
            image = np.full(SHAPE, i, np.float32)
            live.append(0)
            weakref.finalize(image, live.pop)
            most = max(most, len(live))
            yield image

    evaluate = evaluator(model, stream, lambda outputs: float(len(outputs)))
    assert evaluate(model) == Outcome(8.0, 200.0)
    assert rounds == 2
    assert most <= 2


def test_no_image_is_an_error() -> None:
    with pytest.raises(KDError) as error:
        evaluator(chain(2), lambda: iter(()), lambda _: 0.0)
    assert error.value.code == "sensitivity-empty"
    assert "validation image" in error.value.fix


def test_photos_are_judged_by_their_task() -> None:
    """Two maps that sum to what they sum to, against two counts of points."""
    model = chain(2)
    rng = np.random.default_rng(3)
    photos = [
        Photo(
            str(n), np.zeros((n, 2), np.float32), array=rng.integers(0, 255, (16, 16, 3), np.uint8)
        )
        for n in (2, 5)
    ]
    prepare = Preprocess(3, (0.5,) * 3, (0.2,) * 3, (16, 16), (16, 16))
    session = cpu_session(model)
    counts = [
        session.run(None, {"image": prepare(photo.pixels(3))})[0].sum(dtype=np.float64)
        for photo in photos
    ]
    evaluate = photo_evaluator(model, photos, prepare, find_task("counting"), MAE)
    mae = (abs(counts[0] - 2) + abs(counts[1] - 5)) / 2
    assert evaluate(model).metric == pytest.approx(mae, rel=1e-5)


def test_macs_of_a_transposed_convolution() -> None:
    graph = Graph()
    graph.weights["up_w"] = np.ones((3, 4, 2, 2), np.float32)
    graph.nodes.append(
        helper.make_node("ConvTranspose", ["image", "up_w"], ["up"], "up", strides=[2, 2])
    )
    model = graph.model(graph.conv("out", "up", 4, 1, 1))
    macs = layer_macs(model, SHAPE)
    assert macs == {"up": 3 * 4 * 4 * 256, "out": 4 * 32 * 32}
    assert sum(macs.values()) == count_macs(model, SHAPE)


def test_macs_of_matrix_products() -> None:
    node, value = helper.make_node, helper.make_tensor_value_info
    weights = {"a": np.ones((6, 5), np.float32), "b": np.ones((4, 6), np.float32)}
    graph = helper.make_graph(
        [
            node("MatMul", ["x", "a"], ["y"], "first"),
            node("Gemm", ["y", "b"], ["z"], "second", transA=1, transB=0),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [4, 6])],
        [value("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert layer_macs(model, [4, 6]) == {"first": 4 * 6 * 5, "second": 5 * 4 * 6}


def test_layers_of_unknown_size_are_an_error_with_a_fix() -> None:
    model = chain()
    model.graph.node[0].op_type = "Invented"
    with pytest.raises(KDError) as error:
        layer_macs(model, SHAPE)
    assert error.value.code == "shape-unknown"
    assert "operators that onnx does not know" in error.value.fix
