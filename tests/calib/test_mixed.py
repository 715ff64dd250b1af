"""Networks of int8 and fp16: types, casts and numbers, and the plan on real ones."""

import importlib
import re
from itertools import combinations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.version_converter import convert_version
from onnx_graphs import Graph, branches, chain, images, residual, table_of

from kdcompile.calib.costs import Costs
from kdcompile.calib.mixed import mix, mixed_model
from kdcompile.calib.precision_regions import Junctions
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.sensitivity import evaluator, measure_sensitivity
from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.fp16 import halve_nodes, to_fp16
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.tasks.agreement import pooled_sqnr

SHAPE = [1, 3, 16, 16]
NETWORKS = {build.__name__: build for build in (chain, residual, branches)}
F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16


def names_of(model: ModelProto) -> list[str]:
    return [layer.name for layer in quantised_layers(model)]


def subsets(names: list[str]):
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def types_of(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in graph.initializer
    }


def casts(model: ModelProto) -> set[str]:
    return {n.output[0] for n in model.graph.node if n.op_type == "Cast"}


def outputs(model: ModelProto) -> list[np.ndarray]:
    session = cpu_session(model, as_written=True)
    return [session.run(None, {"image": image})[0] for image in images()]


def sqnr(a: ModelProto, b: ModelProto) -> float:
    return pooled_sqnr(outputs(a), outputs(b))


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_every_subset_is_well_typed_and_recasts_what_is_predicted(build) -> None:
    model = build()
    table, junctions = table_of(model), Junctions(model)
    for chosen in subsets(names_of(model)):
        mixed = mixed_model(model, table, "int8", chosen)
        types = types_of(mixed)
        assert types["image"] == types[model.graph.output[0].name] == F32
        for node in mixed.graph.node:
            if node.op_type == "Conv":
                wanted = F32 if node.name in chosen else F16
                assert {types[name] for name in node.input} == {wanted}, node.name
        crossed = {name.removesuffix("_fp16") for name in casts(mixed)}
        ends = {"image", model.graph.output[0].name}
        assert crossed - ends == set(junctions.recast(chosen)), chosen


def test_consecutive_quantised_layers_share_no_cast() -> None:
    model = chain(4)
    assert casts(mixed_model(model, table_of(model), "int8", names_of(model))) == {
        "relu_of_c3_fp16",
        "out",
    }
    assert casts(mixed_model(model, table_of(model), "int8", ["c0", "c2"])) == {
        "relu_of_c0_fp16",
        "relu_of_c1",  # back to float32, for c2's QuantizeLinear
        "relu_of_c2_fp16",
        "out",
    }


def test_the_skip_of_a_quantised_block_is_cast_once() -> None:
    """From fp16 `stem` to the sum inside the island; the pool after it stays inside too."""
    model = residual()
    mixed = mixed_model(model, table_of(model), "int8", ["a1", "a2", "b1", "b2"])
    last = f"{model.graph.node[-1].input[0]}_fp16"
    assert casts(mixed) == {"image_fp16", "relu_of_stem", last, "out"}


def test_what_leads_to_no_quantised_layer_is_fp16() -> None:
    """The sum of `stem` and of an fp16 layer, for one: a cast of `stem` serves it."""
    mixed = mixed_model(residual(), table_of(residual()), "int8", ["stem"])
    assert casts(mixed) == {"relu_of_stem_fp16", "out"}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("storage", ["int8", "float"])
def test_all_quantised_is_int8_and_none_is_fp16(build, storage: str) -> None:
    model = build()
    table = table_of(model)
    every = mixed_model(model, table, storage, names_of(model))
    assert sqnr(insert_qdq(model, table, storage), every) > 55
    assert 55 < sqnr(model, mixed_model(model, table, storage, [])) < 200
    assert sqnr(to_fp16(model), mixed_model(model, table, storage, [])) == 200.0
    assert sqnr(model, every) == pytest.approx(sqnr(model, insert_qdq(model, table)), abs=0.3)


def test_fewer_int8_layers_are_closer_to_fp32() -> None:
    model = chain(4, outlier=2)
    table = table_of(model)
    sets = (["c0", "c1", "c2", "c3"], ["c0", "c1", "c3"], ["c0"])
    int8, without, alone = (sqnr(model, mixed_model(model, table, "int8", s)) for s in sets)
    assert int8 + 6 < without < alone


def test_float16_is_computed_where_it_is_said() -> None:
    """By ONNX's own evaluator, which rounds every tensor as its type says."""
    model = chain(2, width=4)
    table, image = table_of(model), images(1)[0]
    run = {
        name: ReferenceEvaluator(convert_version(candidate, 19)).run(None, {"image": image})[0]
        for name, candidate in (
            ("fp32", model),
            ("fp16", mixed_model(model, table, "int8", [])),
            ("mixed", mixed_model(model, table, "int8", ["c1"])),
            ("c1", insert_qdq(model, table, layers=["c1"])),
        )
    }
    assert 45 < pooled_sqnr([run["fp32"]], [run["fp16"]]) < 90
    assert pooled_sqnr([run["c1"]], [run["mixed"]]) > 40


def test_both_storages_give_the_same() -> None:
    model = residual()
    stored, paired = (
        mixed_model(model, table_of(model), s, ["a1", "b2"]) for s in ("int8", "float")
    )
    assert sqnr(stored, paired) == 200.0
    assert types_of(stored)["a1_w_int8"] == TensorProto.INT8
    assert "a1_w_int8" not in types_of(paired)


def test_constants_that_must_be_float32_stay_so() -> None:
    mixed = mixed_model(branches(), table_of(branches()), "int8", ["left"])
    (resize,) = [n for n in mixed.graph.node if n.op_type == "Resize"]
    types = types_of(mixed)
    assert [types[name] for name in resize.input if name] == [F16, F32]


def test_a_weight_over_65504_is_refused_in_fp16_only() -> None:
    model = chain(2)
    (weight,) = [t for t in model.graph.initializer if t.name == "c1_w"]
    big = numpy_helper.to_array(weight).copy()
    big[0, 0, 0, 0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(big, "c1_w"))
    table = table_of(model)
    assert "c1_w_int8" in types_of(mixed_model(model, table, "int8", ["c0", "c1"]))
    with pytest.raises(KDError, match="1e\\+05") as error:
        mixed_model(model, table, "int8", ["c0"])
    assert (error.value.code, error.value.where) == ("fp16-overflow", "c1_w")


def test_an_operator_without_a_float16_form_stays_float32() -> None:
    graph = Graph()
    graph.conv("c0", "image", 3, 4)
    graph.nodes += [
        helper.make_node("DynamicQuantizeLinear", ["c0"], ["q", "s", "z"], "dynamic"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "back"),
    ]
    model = graph.model(graph.conv("out", "d", 4, 1, 1))
    types = types_of(halve_nodes(model, ()))
    assert (types["c0_fp16"], types["c0"], types["s"], types["d_fp16"]) == (F16, F32, F32, F16)
    assert sqnr(model, halve_nodes(model, ())) > 50


def test_an_operator_that_holds_a_graph_is_refused() -> None:
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["t"])], "t", [], [value("t", F32, [1])]
    )
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=then)],
            "g",
            [value("x", F32, [1]), value("c", TensorProto.BOOL, [])],
            [value("y", F32, [1])],
        )
    )
    with pytest.raises(KDError, match="graph of its own") as error:
        halve_nodes(model, set())
    assert error.value.code == "fp16-unsupported"
    assert "precision" in error.value.fix


@pytest.mark.parametrize(
    "command", [insert_qdq, lambda m, t, layers: mixed_model(m, t, "int8", layers)]
)
def test_an_unknown_layer_is_named(command) -> None:
    model = chain(2)
    with pytest.raises(KDError, match="did you mean 'c1'") as error:
        command(model, table_of(model), layers=["c11"])
    assert error.value.code == "calib-layer"
    assert "c0, c1" in error.value.fix


@pytest.mark.parametrize("name", ["", "same"])
def test_layers_without_a_name_of_their_own_go_by_their_output(name: str) -> None:
    model = chain(2)
    table = table_of(model)  # ONNX Runtime does not run a file in which two nodes share a name
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.name = name
    assert names_of(model) == ["c0", "c1"]
    paired = insert_qdq(model, table, layers=["c1"])
    made = {o: n.op_type for n in paired.graph.node for o in n.output}
    data = {n.output[0]: made.get(n.input[0]) for n in paired.graph.node if n.op_type == "Conv"}
    assert data == {"c0": None, "c1": "DequantizeLinear", "out": "Relu"}


def test_neighbours() -> None:
    found = Junctions(branches()).neighbours()
    assert found == {
        "stem": {"left", "right"},
        "left": {"stem", "right", "mid"},
        "right": {"stem", "left", "mid"},
        "mid": {"left", "right"},
    }


def flat_costs(model: ModelProto, reformat: float = 0.1) -> Costs:
    names = names_of(model)
    recast = Junctions(model).recast
    return Costs(
        dict.fromkeys(names, 1.0), dict.fromkeys(names, 2.0),
        lambda quantised: reformat * len(recast(quantised)), "measured",
    )  # fmt: skip


def test_mix_reverts_the_planted_outlier_alone() -> None:
    model = chain(5, outlier=3)
    table = table_of(model)
    evaluate = evaluator(model, lambda: iter(images()), lambda found: float(np.mean(found)))
    found = measure_sensitivity(model, table, evaluate, SHAPE, 4)
    limit = found.int8.sqnr_db + 6
    plan = mix(model, table, found, flat_costs(model), (evaluate, lambda o: o.sqnr_db >= limit))
    assert plan.reverted == ("c3",)
    assert evaluate(mixed_model(model, table, "int8", plan.quantised)).sqnr_db >= limit
    shares = {entry.layer: entry.macs_share for entry in found.layers}
    assert plan.macs_share == pytest.approx(sum(shares[n] for n in plan.quantised))
    assert 0.5 < plan.macs_share < 1


def compiled_types(blob: bytes, capability: str) -> dict[str, str]:
    """The type of the data that each convolution reads, from the compiler's own report."""
    trt = importlib.import_module("tensorrt_rtx")
    messages: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity, message: str) -> None:
            messages.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(blob), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None
    report = next(m for m in messages if m.startswith("Layers:"))
    pattern = r"^Name: (\w+?)(?:_U\d+)?_myl\d+_\d+, LayerType: correlation,.*?Datatype: (\w+)"
    return dict(re.findall(pattern, report, re.MULTILINE))


@pytest.mark.rtx
@pytest.mark.parametrize("capability", ["SM80", "SM86", "SM89", "SM120"])
@pytest.mark.parametrize("storage", ["int8", "float"])
def test_tensorrt_rtx_computes_the_chosen_layers_in_int8(capability: str, storage: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    model = chain(3, width=16)
    mixed = mixed_model(model, table_of(model), storage, ["c0", "c2"])
    found = compiled_types(mixed.SerializeToString(), capability)
    assert found == {"c0": "Int8", "c1": "Half", "c2": "Int8", "out": "Half"}
