"""Planted faults: each fails the ladder, is found, and is named; sound pairs pass."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdcompile.debug.show import lines_of
from kdcompile.debug.tensors import module_for

PRECISIONS = ("fp32", "fp16", "int8")
# node, module, and what the reason says
EXPECTED = {
    "wrong padding": ("Conv", "pads is [0, 0, 2, 2], the reference's [1, 1, 1, 1]"),
    "swapped axes": ("Transpose", "perm is"),
    "wrong epsilon": ("LayerNormalization", "epsilon is 0.01, the reference's 1e-05"),
    "saturating scale": ("DequantizeLinear", "its scale saturates"),
    "fp16 overflow": ("Conv", "over float16's 65504"),
    "fused ReLU lost": ("Conv", "is lost"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sound_pair_passes(faults, model, images, precision):
    suspect = faults.in_precision(model, precision, images)
    assert faults.find(faults.ladder_of(model, suspect, precision, images)) is None


@pytest.mark.parametrize("name", EXPECTED)
def test_each_planted_fault_is_found_and_named(faults, model, images, name):
    fault = next(fault for fault in faults.FAULTS if fault.name == name)
    quantised = fault.precision == "int8"
    base = faults.in_precision(model, "int8", images) if quantised else model
    places = faults.places(fault, base)
    assert places, "the network has a node that can have the fault"
    for place in places:
        reference, suspect, node = faults.planted(fault, model, base, place)
        found = faults.find(faults.ladder_of(reference, suspect, fault.precision, images))
        operator, reason = EXPECTED[name]
        assert found is not None
        assert found.named.operator == operator
        assert any(reason in why for why in found.why), found.why
        assert found.sudden
        assert faults.is_named(node, found, reference)
        if name == "saturating scale":  # the pair is judged by what it gives
            assert found.named.node == node.replace("_QuantizeLinear", "_DequantizeLinear")
        touched = next((n for n in model.graph.node if n.name == node), None)
        if touched is not None and name != "fused ReLU lost":
            assert found.named.node == node
        if touched is not None:
            assert found.named.module == module_for(touched.output[0], model)
        assert found.runs <= math.ceil(math.log2(found.tensors)) + 3


def test_the_lost_activation_is_called_by_its_name_and_module(faults, model, images):
    fault = next(fault for fault in faults.FAULTS if fault.name == "fused ReLU lost")
    place = faults.places(fault, model)[0]
    reference, suspect, node = faults.planted(fault, model, model, place)
    found = faults.find(faults.ladder_of(reference, suspect, "fp32", images))
    assert found.why == [f"Relu {node} of the reference (module stem.1) is lost"]
    assert found.named.module == "stem.1"


def test_a_lost_activation_is_found_where_the_reader_was_rewired_too(faults, model, images):
    suspect = faults.copied(model)
    relu = next(node for node in suspect.graph.node if node.op_type == "Relu")
    for node in suspect.graph.node:
        node.input[:] = [relu.input[0] if n == relu.output[0] else n for n in node.input]
    name = relu.name
    suspect.graph.node.remove(relu)
    found = faults.find(faults.ladder_of(model, suspect, "fp32", images))
    assert (found.tensor, found.reference) == (relu_input(model), relu_output(model))
    assert any(name in why and "is lost" in why for why in found.why)


def relu_input(model):
    return next(node.input[0] for node in model.graph.node if node.op_type == "Relu")


def relu_output(model):
    return next(node.output[0] for node in model.graph.node if node.op_type == "Relu")


def test_a_changed_weight_is_told(faults, model, images):
    suspect = faults.copied(model)
    weight = next(t for t in suspect.graph.initializer if t.name == "second.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    found = faults.find(faults.ladder_of(model, suspect, "fp32", images))
    assert found.named.module == "second"
    assert any("constant second.weight differs by" in why for why in found.why)


def test_exchanged_operands_are_told(faults):
    def division(*names):
        model = chain(2, 2.0)
        model.graph.node[1].CopyFrom(helper.make_node("Div", names, ["density"], name="ratio"))
        return model

    images = [np.random.default_rng(0).random((1, 1, 4, 4), np.float32) + 1]
    pair = division("t0", "image"), division("image", "t0")
    found = faults.find(faults.ladder_of(*pair, "fp32", images))
    assert found.named.node == "ratio"
    assert "it reads image, t0, the reference t0, image" in found.why


def chain(length, gain):
    """Convolutions of one channel by a constant."""
    nodes, weights, name = [], [], "image"
    for i in range(length):
        out = "density" if i == length - 1 else f"t{i}"
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [out], name=f"conv{i}"))
        value = np.full((1, 1, 1, 1), gain, np.float32)
        weights.append(numpy_helper.from_array(value, f"w{i}"))
        name = out
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 1, 4, 4])
        for end in ("image", "density")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_error_that_builds_up_blames_no_single_node(faults):
    images = [np.random.default_rng(0).random((1, 1, 4, 4), np.float32)]
    ladder = faults.ladder_of(chain(9, 1.0), chain(9, 1.1), "int8", images)
    found = faults.find(ladder)
    assert found.tensor == "t1"  # 1.1^2 is over the limit of 0.2, 1.1 is not
    assert not found.sudden
    assert any("built up" in line for line in lines_of(found))
