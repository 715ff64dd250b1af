"""Each rule of fusion on a small graph, and the quarter CSRNet counted by hand."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from safetensors import safe_open

from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.mixed import mixed_model
from kdcompile.calib.qdq import choose_layers, insert_qdq
from kdcompile.core.errors import KDError
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.workload import product_of
from kdcompile.models.factory import build_model, load_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.onnx_graph.layers import count_macs, layer_macs

ROOT = Path(__file__).parents[2]
IMAGE = [1, 8, 16, 16]
IMAGE_BYTES = 4 * 8 * 16 * 16


def network(body, shape=IMAGE, **weights):
    """A network of lines `y = Conv(x, w)` from `x` to `y`; each weight is given by its shape."""
    dims = ", ".join(map(str, shape))
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[{dims}] x) => (float y) {{ {body} }}'
    model = parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    for name, size in weights.items():
        values = np.zeros(size, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def kinds(model, shape=IMAGE, **options):
    return [kernel.kind for kernel in kernels_of(model, shape, **options)]


def quantised(model, *names):
    """The network with a pair, of a scale of its own, on each of these tensors."""
    body = []
    weights = {t.name for t in model.graph.initializer}
    for name in names:
        scale = numpy_helper.from_array(np.float32(1 + len(model.graph.initializer)), f"{name}_s")
        zero = helper.make_tensor(f"{name}_z", TensorProto.INT8, [], [0])
        model.graph.initializer.extend([scale, zero])
        for node in model.graph.node:
            node.input[:] = [f"{name}_d" if n == name else n for n in node.input]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    pairs = {name: _pair(name) for name in names}
    for name in names:
        if name == "x" or name in weights:
            body += pairs[name]
    for node in nodes:
        body.append(node)
        body += pairs.get(node.output[0], [])
    del model.graph.node[:]
    model.graph.node.extend(body)
    return model


def _pair(name):
    constants = [f"{name}_s", f"{name}_z"]
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_q"], f"{name}_Q"),
        helper.make_node(
            "DequantizeLinear", [f"{name}_q", *constants], [f"{name}_d"], f"{name}_DQ"
        ),
    ]


RESIDUAL = "a = Conv<pads=[1,1,1,1]>(x, w)  b = Add(a, x)  y = Relu(b)"
W3 = (8, 8, 3, 3)


def test_convolution_with_norm_residual_and_activation_is_one_kernel():
    model = network(
        "a = Conv<pads=[1,1,1,1]>(x, w)  n = BatchNormalization(a, s, s, s, s)  "
        "b = Add(n, x)  y = Relu(b)",
        w=W3,
        s=(8,),
    )
    (kernel,) = kernels_of(model, IMAGE)
    assert (kernel.kind, kernel.nodes) == ("conv", ("n0", "n1", "n2", "n3"))
    assert kernel.reads == {"x": IMAGE_BYTES}  # the residual is the image itself: read once
    assert kernel.writes == {"y": IMAGE_BYTES}
    assert kernel.weight_bytes == 4 * (8 * 8 * 9 + 8)  # the norm leaves a bias
    assert (kernel.in_channels, kernel.out_channels, kernel.kernel_size) == (8, 8, (3, 3))


def test_of_two_added_convolutions_the_later_adds():
    model = network("a = Conv(x, w)  b = Conv(x, v)  c = Add(a, b)  y = Relu(c)",
                    w=(8, 8, 1, 1), v=(8, 8, 1, 1))  # fmt: skip
    first, second = kernels_of(model, IMAGE)
    assert first.nodes == ("n0",)
    assert second.nodes == ("n1", "n2", "n3")
    assert set(second.reads) == {"x", "a"}


def test_a_result_that_others_read_ends_the_kernel():
    model = network("a = Conv(x, w)  b = Relu(a)  y = Mul(a, b)", w=(8, 8, 1, 1))
    first, second = kernels_of(model, IMAGE)
    assert first.nodes == ("n0",)
    assert (second.kind, second.nodes) == ("pointwise", ("n1", "n2"))
    assert second.reads == {"a": IMAGE_BYTES}


def test_silu_is_a_pointwise_kernel_after_its_convolution():
    model = network("a = Conv(x, w)  b = Sigmoid(a)  y = Mul(a, b)", w=(8, 8, 1, 1))
    assert kinds(model) == ["conv", "pointwise"]


@pytest.mark.parametrize(
    ("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)], ids=["lstm", "gru", "rnn"]
)
@pytest.mark.parametrize("ways", [1, 2])
def test_a_recurrent_layer_is_one_launch_a_step(operator, gates, ways):
    """Six steps of two sequences of 40 numbers, sixteen hidden units."""
    way = {1: "forward", 2: "bidirectional"}[ways]
    model = network(
        f'a, y = {operator}<hidden_size=16, direction="{way}">(x, w, r, b)', [6, 2, 40],
        w=(ways, gates * 16, 40), r=(ways, gates * 16, 16), b=(ways, 2 * gates * 16),
    )  # fmt: skip
    (kernel,) = kernels_of(model, [6, 2, 40], "fp16")[1:-1]
    assert (kernel.kind, kernel.steps, kernel.groups) == ("recurrent", 6, ways)
    assert (kernel.in_channels, kernel.out_channels) == (40 + 16, gates * 16)
    assert kernel.macs == 6 * 2 * ways * gates * 16 * (40 + 16)
    assert kernel.weight_bytes == 2 * ways * gates * 16 * (40 + 16 + 2)
    assert product_of(kernel, 1) == (2, gates * 16, 56, ways)
    assert count_macs(model, [6, 2, 40]) == kernel.macs


def test_a_recurrent_layer_whose_states_alone_are_read_is_priced_too():
    body = "a, y = GRU<hidden_size=8>(x, w, r)"
    model = network(body, [5, 1, 4], w=(1, 24, 4), r=(1, 24, 8))
    model.graph.node[0].output[0] = ""
    (kernel,) = kernels_of(model, [5, 1, 4])
    assert (kernel.macs, kernel.steps, kernel.shape) == (5 * 24 * 12, 5, (1, 1, 8))


def test_nothing_follows_an_activation_into_the_kernel():
    model = network("a = Conv(x, w)  b = Relu(a)  y = Add(b, x)", w=(8, 8, 1, 1))
    assert kinds(model) == ["conv", "pointwise"]


def test_pointwise_chains_are_one_kernel_unless_a_way_leads_around():
    assert kinds(network("a = Exp(x)  b = Neg(a)  c = Tanh(a)  y = Mul(b, c)")) == ["pointwise"]
    model = network("a = Exp(x)  b = Softmax(a)  y = Mul(a, b)")
    assert kinds(model) == ["pointwise", "softmax", "pointwise"]


def test_each_kind_of_convolution_is_told_apart():
    model = network(
        "a = Conv<pads=[1,1,1,1], group=8>(x, dw)  b = Conv<group=2>(a, gr)  "
        "c = Conv<pads=[2,2,2,2], dilations=[2,2]>(b, di)  "
        "d = ConvTranspose<strides=[2,2]>(c, tr)  e = MaxPool<kernel_shape=[2,2]>(d)  "
        "f = Resize<mode=\"linear\">(e, , s)  y = ReduceMean(f)",
        dw=(8, 1, 3, 3), gr=(8, 4, 1, 1), di=(8, 8, 3, 3), tr=(8, 4, 2, 2),
    )  # fmt: skip
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
    model.graph.initializer.append(scales)
    found = kernels_of(model, IMAGE)
    assert [kernel.kind for kernel in found] == [
        "depthwise", "grouped", "dilated", "transposed", "pool", "resize", "reduction",
    ]  # fmt: skip
    assert [k.macs for k in found[:4]] == [256 * 72, 256 * 32, 256 * 576, 256 * 128]
    assert sum(k.macs for k in found) == count_macs(model, IMAGE)
    assert sum(k.macs for k in found) == sum(layer_macs(model, IMAGE).values())
    assert (found[0].groups, found[2].dilation, found[3].stride) == (8, (2, 2), (2, 2))
    assert found[3].shape == (1, 4, 32, 32)


def test_views_cost_nothing_and_keep_the_tensor():
    model = network(
        "a = Conv(x, w)  b = Relu(a)  f = Flatten(b)  g = Gemm(f, v, c)  y = Relu(g)",
        w=(2, 8, 16, 16), v=(2, 3), c=(3,),
    )  # fmt: skip
    first, second = kernels_of(model, IMAGE)
    assert list(first.writes) == list(second.reads) == ["b"]
    assert (second.kind, second.in_channels, second.out_channels) == ("gemm", 2, 3)
    assert second.weight_bytes == 4 * (6 + 3)


def test_a_transpose_costs_unless_only_axes_of_one_move():
    assert kinds(network("y = Transpose<perm=[0,2,3,1]>(x)")) == ["shuffle"]
    model = network("a = Transpose<perm=[1,2,3,0]>(x)  y = Relu(a)")
    assert kinds(model) == ["pointwise"]


def test_matrix_product_takes_a_turned_matrix_and_its_bias():
    model = network("t = Transpose<perm=[0,2,1]>(x)  a = MatMul(t, w)  y = Add(a, b)",
                    shape=[1, 4, 6], w=(4, 5), b=(5,))  # fmt: skip
    (kernel,) = kernels_of(model, [1, 4, 6])
    assert (kernel.kind, kernel.macs, kernel.nodes) == ("gemm", 6 * 4 * 5, ("n0", "n1", "n2"))


def test_padding_with_zeros_is_the_convolutions():
    model = network("a = Pad(x, p)  y = Conv(a, w)", w=W3)
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "p")
    model.graph.initializer.append(pads)
    (kernel,) = kernels_of(model, IMAGE)
    assert (kernel.kind, kernel.reads) == ("conv", {"x": IMAGE_BYTES})
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    model.graph.node[0].input.append("one")
    assert kinds(model) == ["shuffle", "conv"]
    del model.graph.node[0].input[2]
    model.graph.node[0].attribute.append(helper.make_attribute("mode", "reflect"))
    assert kinds(model) == ["shuffle", "conv"]


def test_concatenation_is_free_where_kernels_can_write_in_place():
    body = "a = Conv(x, w)  b = Conv(x, w)  c = Concat<axis=1>(a, b)  y = Conv(c, v)"
    model = network(body, w=(8, 8, 1, 1), v=(4, 16, 1, 1))
    found = kernels_of(model, IMAGE)
    assert [k.kind for k in found] == ["conv"] * 3
    assert found[2].reads == {"a": IMAGE_BYTES, "b": IMAGE_BYTES}
    copied = network("a = Conv(x, w)  c = Concat<axis=1>(a, x)  y = Conv(c, v)",
                     w=(8, 8, 1, 1), v=(4, 16, 1, 1))  # fmt: skip
    found = kernels_of(copied, IMAGE)
    assert sorted(k.kind for k in found) == ["conv", "conv", "copy"]
    copy = next(k for k in found if k.kind == "copy")
    assert (copy.reads, list(copy.writes.values())) == ({"x": IMAGE_BYTES}, [IMAGE_BYTES])
    assert {*copy.writes, "a"} == set(found[-1].reads)


def test_a_part_that_others_read_or_that_is_resized_is_copied_to_its_place():
    shared = network("a = Conv(x, w)  b = Conv(a, w)  c = Concat<axis=1>(a, b)  y = Conv(c, v)",
                     w=(8, 8, 1, 1), v=(4, 16, 1, 1))  # fmt: skip
    found = kernels_of(shared, IMAGE)
    assert sorted(k.kind for k in found) == ["conv"] * 3 + ["copy"]
    assert next(k for k in found if k.kind == "copy").reads == {"a": IMAGE_BYTES}
    grown = network("a = Conv(x, w)  b = Resize(a, , s)  d = Conv(x, w)  "
                    "c = Concat<axis=1>(b, d)  y = Conv(c, v)",
                    w=(8, 8, 1, 1), v=(4, 16, 1, 1))  # fmt: skip
    scales = numpy_helper.from_array(np.array([1, 1, 1, 1], np.float32), "s")
    grown.graph.initializer.append(scales)
    found = kernels_of(grown, IMAGE)
    assert sorted(k.kind for k in found) == ["conv"] * 3 + ["copy", "resize"]
    assert list(next(k for k in found if k.kind == "copy").reads) == ["b"]


def test_a_split_copies_each_part_and_reads_no_more_than_that():
    model = network("a, b = Split<axis=1, num_outputs=2>(x)  d = Conv(b, w)  "
                    "c = Concat<axis=1>(a, b, d)  y = Conv(c, v)",
                    w=(4, 4, 1, 1), v=(4, 12, 1, 1))  # fmt: skip
    found = kernels_of(model, IMAGE)
    assert sorted(k.kind for k in found) == ["conv", "conv", "copy", "copy"]
    copies = [k for k in found if k.kind == "copy"]
    assert [list(k.writes) for k in copies] == [["a"], ["b"]]
    assert [k.reads for k in copies] == [{"x": IMAGE_BYTES // 2}] * 2
    assert found[-1].reads == dict.fromkeys("abd", IMAGE_BYTES // 2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = Softmax<axis=-1>(x)", "softmax"),
        ("y = Softmax<axis=1>(x)", "across"),
        ("y = LayerNormalization(x, g)", "norm"),
        ("y = Gather<axis=1>(x, i)", "gather"),
        ("y = Slice(x, o, i)", "copy"),
    ],
)
def test_what_moves_memory_has_a_kind_of_its_own(body, kind):
    model = network(body, g=(8,))
    for name, value in (("i", 4), ("o", 0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    assert kinds(model) == [kind]


def test_a_softmax_stays_in_float_in_a_network_of_integers():
    model = network("a = Relu(x)  b = Softmax<axis=1>(a)  y = Relu(b)")
    found = kernels_of(model, IMAGE, float32_as="int8")
    softmax = next(k for k in found if k.kind == "across")
    assert (softmax.input_precision, softmax.output_precision) == ("fp32", "fp32")


def test_attention_is_one_kernel_of_both_products():
    model = network(
        "q = MatMul(x, a)  k = MatMul(x, b)  v = MatMul(x, c)  t = Transpose<perm=[0,2,1]>(k)  "
        "s = MatMul(q, t)  m = Mul(s, scale)  p = Softmax(m)  y = MatMul(p, v)",
        shape=[2, 10, 16], a=(16, 4), b=(16, 4), c=(16, 4), scale=(1,),
    )  # fmt: skip
    found = kernels_of(model, [2, 10, 16])
    assert [k.kind for k in found] == ["gemm"] * 3 + ["attention"]
    assert found[3].reads == dict.fromkeys(["q", "k", "v"], 2 * 10 * 4 * 4)
    assert found[3].macs == 2 * 2 * 10 * 10 * 4
    assert found[3].groups == 2
    assert sum(k.macs for k in found) == count_macs(model, [2, 10, 16])


def test_a_computed_mask_is_read_by_the_attention():
    model = network(
        "n = Neg(x)  k = Mul(n, two)  t = Transpose<perm=[0,2,1]>(x)  s = MatMul(x, t)  "
        "m = Add(k, s)  p = Softmax(m)  y = MatMul(p, x)",
        shape=[2, 4, 4], two=(1,),
    )  # fmt: skip
    pointwise, attention = kernels_of(model, [2, 4, 4])
    assert pointwise.nodes == ("n0", "n1")
    assert set(attention.reads) == {"x", "k"}


def test_control_flow_is_refused():
    model = network("t = Relu(x)  c = ReduceMax<keepdims=0>(t)  b = Cast<to=9>(c)  y = Relu(x)")
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, IMAGE)
    branch = helper.make_graph([helper.make_node("Exp", ["x"], ["o"])], "branch", [], [out])
    choice = helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node[3].CopyFrom(choice)
    with pytest.raises(KDError, match="If is control flow") as caught:
        kernels_of(model, IMAGE)
    assert "control flow" in caught.value.fix


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_any_graph_runs_in_order_and_each_node_once(seed, pairs):
    """Chance decides who reads whom, so that ways lead around many a chain."""
    draw = np.random.default_rng(seed)
    names, lines = ["x"], []
    for number in range(14):
        kind = draw.choice(["Exp", "Add", "Mul", "Softmax", "Conv", "Relu", "MaxPool"])
        given = [str(name) for name in draw.choice(names[-5:], 2)]
        call = {
            "Conv": f"Conv<pads=[1,1,1,1]>({given[0]}, w)",
            "MaxPool": f"MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({given[0]})",
        }.get(kind, f"{kind}({', '.join(given if kind in ('Add', 'Mul') else given[:1])})")
        names.append(f"t{number}")
        lines.append(f"t{number} = {call}")
    lines.append("y = Sum(" + ", ".join(names) + ")")
    model = network("  ".join(lines), w=W3)
    plain = [node.name for node in model.graph.node]
    if pairs:
        model = quantised(model, "w", *(str(n) for n in draw.choice(names, 7, replace=False)))
    found = kernels_of(model, IMAGE)
    written = {"x"}
    for kernel in found:
        assert set(kernel.reads) <= written
        written |= set(kernel.writes)
    assert sorted(n for k in found for n in k.nodes if n in plain) == sorted(plain)
    assert sum(k.macs for k in found) == count_macs(model, IMAGE)


def test_constants_are_folded_and_shapes_need_no_kernel():
    model = network("v = Relu(w)  a = Conv(x, v)  s = Shape(a)  y = Reshape(a, s)", w=(8, 8, 1, 1))
    assert kinds(model) == ["conv"]


def test_pairs_are_folded_into_the_layer_between_them():
    model = quantised(network("a = Conv(x, w)  b = Relu(a)  y = Conv(b, v)",
                              w=(8, 8, 1, 1), v=(8, 8, 1, 1)), "x", "w", "b", "v")  # fmt: skip
    enter, first, second = kernels_of(model, IMAGE)
    assert (enter.kind, enter.input_precision, enter.output_precision) == (
        "reformat", "fp32", "int8",
    )  # fmt: skip
    assert first.reads == {"x_q": IMAGE_BYTES // 4}
    assert first.writes == {"b_q": IMAGE_BYTES // 4}
    assert (second.input_precision, second.weight_precision) == ("int8", "int8")
    assert second.output_precision == "fp32"
    assert second.weight_bytes == 64


def test_a_float_residual_keeps_the_next_q_apart():
    body = RESIDUAL.replace("y =", "c =") + "  y = Conv<pads=[1,1,1,1]>(c, v)"

    def of(*names):
        model = network(body, w=W3, v=W3)
        return kernels_of(quantised(model, *names), IMAGE)

    # the pair of the image serves convolution and sum alike: an int8 residual, which Q follows
    int8 = of("x", "w", "c", "v")
    assert [k.kind for k in int8] == ["reformat", "conv", "conv"]
    assert int8[1].writes == {"c_q": IMAGE_BYTES // 4}
    model = quantised(network(body, w=W3, v=W3), "x", "w", "c", "v")
    (add,) = (n for n in model.graph.node if n.op_type == "Add")
    add.input[1] = "x"
    floats = kernels_of(model, IMAGE)
    assert [k.kind for k in floats] == ["reformat", "conv", "reformat", "conv"]
    assert floats[1].reads == {"x_q": IMAGE_BYTES // 4, "x": IMAGE_BYTES}
    assert floats[1].writes == {"c": IMAGE_BYTES}


def test_q_goes_before_what_only_moves_values():
    model = quantised(
        network("a = Conv(x, w)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)  y = Conv(p, v)",
                w=(8, 8, 1, 1), v=(8, 8, 1, 1)), "x", "w", "p", "v")  # fmt: skip
    found = kernels_of(model, IMAGE)
    assert [k.kind for k in found] == ["reformat", "conv", "pool", "conv"]
    assert found[2].read_bytes == IMAGE_BYTES // 4
    assert found[2].output_precision == "int8"


def test_average_pooling_is_int8_between_dq_and_q_alone():
    body = "a = AveragePool<kernel_shape=[2,2]>(x)  y = Conv(a, w)"
    inside = kernels_of(quantised(network(body, w=(8, 8, 1, 1)), "x", "a", "w"), IMAGE)
    assert [(k.kind, k.input_precision) for k in inside] == [
        ("reformat", "fp32"), ("pool", "int8"), ("conv", "int8"),
    ]  # fmt: skip
    outside = kernels_of(quantised(network(body, w=(8, 8, 1, 1)), "x"), IMAGE)
    assert [(k.kind, k.input_precision) for k in outside] == [
        ("reformat", "fp32"), ("reformat", "int8"), ("pool", "fp32"), ("conv", "fp32"),
    ]  # fmt: skip


def test_readers_that_do_not_take_a_dq_in_share_its_kernel():
    model = quantised(network("a = Softmax(x)  b = ReduceMax(x)  y = Mul(a, b)"), "x")
    assert kinds(model).count("reformat") == 2  # Q, and one DQ


def test_weak_typing_retypes_what_is_inside():
    model = network(RESIDUAL, w=W3)
    enter, layer, leave = kernels_of(model, IMAGE, float32_as="fp16")
    assert (enter.kind, enter.writes) == ("reformat", {"x_reformat": IMAGE_BYTES // 2})
    assert (layer.input_precision, layer.weight_bytes) == ("fp16", 2 * 8 * 8 * 9)
    assert leave.writes == {"y": IMAGE_BYTES}
    enter, layer = kernels_of(model, IMAGE, float32_as="int8")
    assert (layer.input_precision, layer.output_precision) == ("int8", "fp32")


def test_an_unknown_size_is_refused_with_a_fix():
    model = network("a = NonZero(x)  b = Cast<to=1>(a)  y = Relu(b)")
    with pytest.raises(KDError) as caught:
        kernels_of(model, IMAGE)
    assert caught.value.code == "shape-unknown"
    assert "shape of the network's input" in caught.value.fix
    with pytest.raises(KDError, match="4 axes"):
        kernels_of(model, [1, 8])


SHAPE = [1, 3, 128, 128]
WIDTHS = [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128, 64, 32, 16]
SIDES = [128, 128, 64, 64, 32, 32, 32, 16, 16, 16, 16, 16, 16, 16, 16, 16]
POOLED = {1: 64, 3: 32, 6: 16}  # after which convolution, and to which side


@pytest.fixture(scope="module")
def csrnet(tmp_path_factory):
    """The quarter student and its ranges."""
    weights = ROOT / "benchmarks" / "models" / "csrnet_quarter_sha.safetensors"
    teacher = build_model("kdcompile.models.csrnet:build", ROOT)
    with safe_open(weights, "np") as stream:
        architecture = json.loads(stream.metadata()["architecture"])
    student = student_from_architecture(teacher, architecture, ROOT)
    load_weights(student, weights)  # a bias of zeros would not be exported
    path = tmp_path_factory.mktemp("csrnet") / "student.onnx"
    model = onnx_from_module(student.eval(), path, (SHAPE, SHAPE, SHAPE), 18, 9, "density")
    image = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    return model, calibrate(model, "0" * 64, iter([image]), [("a", "")], "minmax")


def by_hand(size_in, size_out, size_weight):
    """Bytes of activations and of weights; `size_*(n)` is an element's, by layer n of 0 to 16."""
    moved = weights = 0
    channels = 3
    side = 128
    for n, (width, rows) in enumerate(zip([*WIDTHS, 1], [*SIDES, 16], strict=True)):
        taps = 1 if n == 16 else 9
        moved += side * side * channels * size_in(n) + rows * rows * width * size_out(n)
        size = size_weight(n)
        weights += width * channels * taps * size + width * (4 if size == 1 else size)
        side = rows
        if n in POOLED:
            side = POOLED[n]
            moved += (rows * rows + side * side) * width * size_out(n)
        channels = width
    return moved, weights


def counted(found):
    moved = sum(k.read_bytes + k.written_bytes for k in found)
    return moved, sum(k.weight_bytes for k in found)


def test_csrnet_fp32_by_hand(csrnet):
    model, _ = csrnet
    found = kernels_of(model, SHAPE)
    assert [k.kind for k in found].count("dilated") == 6
    assert len(found) == 17 + 3
    assert counted(found) == by_hand(lambda n: 4, lambda n: 4, lambda n: 4)
    assert sum(k.macs for k in found) == count_macs(model, SHAPE)
    by_layer = {k.nodes[0]: k.macs for k in found if k.macs}
    assert by_layer == layer_macs(model, SHAPE)


def test_csrnet_fp16_by_hand(csrnet):
    found = kernels_of(to_fp16(csrnet[0]), SHAPE)
    assert len(found) == 20 + 2
    moved, weights = by_hand(lambda n: 2, lambda n: 2, lambda n: 2)
    assert counted(found) == (moved + 6 * (3 * 128**2 + 16**2), weights)


@pytest.mark.parametrize("storage", ["int8", "float"])
def test_csrnet_int8_by_hand(csrnet, storage):
    model, table = csrnet
    found = kernels_of(insert_qdq(model, table, storage), SHAPE)
    assert len(found) == 20 + 1  # and the Q of the image
    moved, weights = by_hand(
        lambda n: 4 if n == 16 else 1, lambda n: 4 if n >= 15 else 1, lambda n: 4 if n == 16 else 1
    )
    assert counted(found) == (moved + 5 * 3 * 128**2, weights)
    assert sum(k.macs for k in found) == count_macs(model, SHAPE)


def test_csrnet_mixed_by_hand(csrnet):
    model, table = csrnet
    names = [layer.name for layer in choose_layers(model, None)][4:8]
    mixed = mixed_model(model, table, "int8", names)
    found = kernels_of(mixed, SHAPE)
    reformats = [k.name for k in found if k.kind == "reformat"]
    assert len(found) == 20 + 3  # the image's Cast, Cast and Q into the island, the output's Cast
    assert reformats[1] == "max_pool2d_1_cast + max_pool2d_1_QuantizeLinear"
    moved, weights = by_hand(
        lambda n: 1 if n in (4, 5, 6, 7) else 2,
        lambda n: 1 if n in (4, 5, 6) else 2,
        lambda n: 1 if n in (4, 5, 6, 7) else 2,
    )
    casts = 6 * (3 * 128**2 + 16**2) + 3 * 32 * 32**2
    assert counted(found) == (moved + casts, weights)


def test_what_is_read_was_written_before(csrnet):
    model, table = csrnet
    written = {"image"}
    for kernel in kernels_of(insert_qdq(model, table), SHAPE):
        assert set(kernel.reads) <= written
        written |= set(kernel.writes)
    assert "density" in written
