"""Pairs on residual branches: where they stand, what they cost in accuracy, what they save."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto
from onnx_graphs import Graph, chain, images, residual, table_of

from kdcompile import targets
from kdcompile.calib.collect import tensors_to_observe, tensors_to_quantise
from kdcompile.calib.mixed import mixed_model
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.residual import residual_branches
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.predict import kernel_ms
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.onnx_graph.shapes import element_types
from kdcompile.tasks.agreement import pooled_sqnr

SHAPE = [1, 3, 16, 16]


def names_of(model: ModelProto) -> list[str]:
    return [layer.name for layer in quantised_layers(model)]


def found(model: ModelProto, layers: list[str] | None = None) -> dict[str, str]:
    names = names_of(model) if layers is None else layers
    return residual_branches(model, names, table_of(model).tensors)


def outputs(model: ModelProto) -> list[np.ndarray]:
    session = cpu_session(model, as_written=True)
    return [session.run(None, {"image": image})[0] for image in images()]


def both(model: ModelProto, storage: str = "int8") -> tuple[ModelProto, ModelProto]:
    """All layers in int8, without and with the pairs."""
    table, names = table_of(model), names_of(model)
    plain = mixed_model(model, table, storage, names)
    return plain, mixed_model(model, table, storage, names, found(model))


def sums(model: ModelProto) -> list[list[str]]:
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    return [[made[name] for name in n.input] for n in model.graph.node if n.op_type == "Add"]


def kinds(model: ModelProto) -> list[str]:
    return [kernel.kind for kernel in kernels_of(model, SHAPE)]


@pytest.mark.parametrize("storage", ["int8", "float"])
def test_the_term_that_no_convolution_adds_comes_through_a_pair(storage: str) -> None:
    plain, paired = both(residual(), storage)
    assert sums(plain) == [["Conv", "Relu"], ["Conv", "MaxPool"]]
    assert sums(paired) == [["Conv", "DequantizeLinear"]] * 2
    quantisers = [
        sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
        for model in (plain, paired)
    ]
    assert quantisers[0] == quantisers[1]  # the block's first layer has the pair already


def test_values_stay_near_the_float_network() -> None:
    model = residual()
    float32 = outputs(model)
    plain, paired = (pooled_sqnr(float32, outputs(made)) for made in both(model))
    assert 25 < paired < 200
    assert paired > plain - 6
    assert paired != plain


def test_the_sum_is_fused_and_priced_no_slower() -> None:
    plain, paired = both(residual())
    assert kinds(plain).count("reformat") > kinds(paired).count("reformat")
    target = targets.load("jetson")
    before, after = (kernel_ms(kernels_of(m, SHAPE), target, "int8") for m in (plain, paired))
    assert after < before


def test_only_a_sum_whose_convolution_is_quantised_has_one() -> None:
    model = residual()
    first, second = found(model)
    assert list(found(model, ["a1", "a2", "b1"])) == [first]
    assert found(model, ["a1", "b1", "b2"]) == {}  # the sum of b is computed in half
    assert list(found(model, ["a1", "a2", "b1", "b2"])) == [first, second]
    assert found(model, ["a1", "b1"]) == {}
    assert found(chain(3)) == {}


def test_a_pair_stands_before_the_first_that_reads_it() -> None:
    """Also where that is the sum, and the first layer of its block is not quantised."""
    model = residual()
    table, layers = table_of(model), ["a2", "b1"]
    branch = found(model, layers)
    assert list(branch.values()) == ["relu_of_stem"]
    made = insert_qdq(model, table, "int8", layers, branch)
    assert sums(made)[0] == ["Conv", "DequantizeLinear"]
    assert pooled_sqnr(outputs(model), outputs(made)) > 25


def shortcut() -> ModelProto:
    """A block whose skip is a convolution too, as where a ResNet halves its maps."""
    graph = Graph(3)
    data = graph.apply("Relu", graph.conv("stem", "image", 3, 8))
    skip = graph.conv("short", data, 8, 8, 1)
    inner = graph.apply("Relu", graph.conv("a1", data, 8, 8))
    joined = graph.apply("Relu", graph.apply("Add", graph.conv("a2", inner, 8, 8), skip))
    return graph.model(graph.conv("out", joined, 8, 1, 1))


def test_of_two_convolutions_the_later_one_adds() -> None:
    model = shortcut()
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    names = names_of(model)
    assert residual_branches(model, names, {"short"}) == {add.output[0]: "short"}
    assert residual_branches(model, names) == {add.output[0]: "short"}
    assert residual_branches(model, names, set()) == {}  # without a range there is no pair


def test_sums_with_a_pair_stay_float32() -> None:
    _, paired = both(residual())
    types = element_types(paired)
    terms = [name for node in paired.graph.node if node.op_type == "Add" for name in node.input]
    assert {types[name] for name in terms} == {TensorProto.FLOAT}


def test_the_convolution_on_a_skip_has_a_range_and_a_pair() -> None:
    """No layer reads it, so that only `residual_branches` asks for its range."""
    model = shortcut()
    assert "short" not in tensors_to_quantise(model)
    assert tensors_to_observe(model) == [*tensors_to_quantise(model), "short"]
    plain, paired = both(model)
    assert sums(plain) == [["Conv", "Conv"]]
    assert sums(paired) == [["Conv", "DequantizeLinear"]]
    assert pooled_sqnr(outputs(model), outputs(paired)) > 25
    assert kinds(plain).count("reformat") >= kinds(paired).count("reformat")


def test_a_network_without_such_sums_is_observed_where_its_layers_read() -> None:
    for model in (chain(3), residual()):
        assert tensors_to_observe(model) == tensors_to_quantise(model)
