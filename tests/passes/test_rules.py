"""What `plan` says of the hardware's limits: in text, in --json, and by its exit code."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser
from small_digits import few_photos

from kdcompile import targets
from kdcompile.cli import cli
from kdcompile.config.load import load_spec
from kdcompile.config.template import init_example
from kdcompile.core.store import Artifact
from kdcompile.latency_model.kernels import operators_of
from kdcompile.passes.manager import make_plan
from kdcompile.passes.plan_text import lines
from kdcompile.passes.refusals import OPERATORS, asked_of, met_by, student_network
from kdcompile.passes.stages import STAGES
from kdcompile.targets.rules import on_dla


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("rules") / "tiny"
    init_example("digits", place)
    few_photos(place)  # no limit of the hardware hangs on them
    return place


def plan(folder, *sets, target="jetson"):
    """A plan as far as its limits are concerned."""
    spec = load_spec(folder / "kdcompile.toml", sets, target)
    return SimpleNamespace(spec=spec, target=targets.load(target))


def codes(folder, *sets, **named):
    return [violation.code for violation in met_by(plan(folder, *sets, **named))]


def run_on(folder, target, *sets):
    words = [word for value in sets for word in ("--set", value)]
    return CliRunner().invoke(cli, ["plan", str(folder), "--target", target, *words, "--json"])


def run(folder, *words):
    words = [str(folder), "--target", "jetson", *words]
    return CliRunner().invoke(cli, ["plan", *words])


def test_a_precision_that_the_target_lacks_is_explained_and_nothing_is_priced(folder):
    found = run(folder, "--set", "quantize.precision=fp8", "--json")
    assert found.exit_code == 1, found.output
    told = json.loads(found.stdout)
    (rule,) = told["rules"]
    assert rule["code"] == "fp8-arithmetic"
    assert rule["where"] == "[quantize] precision = fp8"
    assert "jetson-orin-nano-8gb has 8.7" in rule["message"]
    assert rule["fix"]
    assert told["estimate"] is None
    assert told["stopped"]["code"] == "target-precision"
    text = "\n".join(lines(told))
    assert "refused    fp8-arithmetic: fp8 arithmetic begins with" in text
    assert "no costs: the search stops with target-precision" in text
    assert f"fix:   {rule['fix']}" in text


def test_another_error_of_the_search_is_an_error(folder):
    found = run(folder, "--set", "student.budget={speedup=1e6}")
    assert found.exception.code.startswith("budget-")


def test_a_plan_without_limits_says_so(folder):
    found = run(folder, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["rules"], told["stopped"]) == ([], None)
    assert told["rules_on_operators"]
    assert "limits     none: " in "\n".join(lines(told))


def test_the_costs_are_at_the_precisions_that_the_speed_up_compares(folder):
    found = run(folder, "--json")
    told = json.loads(found.stdout)
    estimate = told["estimate"]
    assert (estimate["teacher_precision"], estimate["precision"]) == ("fp16", "int8")
    text, rows = "\n".join(lines(told)), (("teacher", "fp16"), ("student", "int8"))
    teacher, student = (
        float(re.search(rf"^{name} .* ([\d.e-]+) ms at {precision} ", text, re.M)[1])
        for name, precision in rows
    )
    assert teacher / student == pytest.approx(estimate["speedup"], rel=0.01)


def test_a_student_that_is_still_to_be_searched_for_costs_nothing_to_plan(folder):
    sets = ("--set", "student.family=search", "--set", "student.budget={speedup=2}")
    found = run(folder, *sets, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["estimate"], told["stopped"], told["rules_on_operators"]) == (None, None, False)
    assert {step["stage"]: step["key"] for step in told["steps"]}["search"] is None
    text = "\n".join(lines(told))
    assert "no costs yet: kdcompile search finds the student" in text
    assert "known once `search` has run" in text
    refused = run(folder, *sets, "--set", "quantize.precision=fp8", "--json")
    assert refused.exit_code == 1
    assert [rule["code"] for rule in json.loads(refused.stdout)["rules"]] == ["fp8-arithmetic"]


@pytest.mark.parametrize(
    ("sets", "target", "expected"),
    [
        (["compile.dla=0"], "jetson", ["dla-cores"]),
        (["compile.dla=1"], "jetson-agx-xavier", ["dla-explicit-int8"]),
        (["compile.tf32=false"], "t4", ["tf32-arithmetic"]),
        (["compile.tf32=false"], "jetson", []),
        (["compile.optimization_level=0"], "jetson@jp5.1.2", ["optimization-level"]),
        ([], "jetson", []),
    ],
)
def test_the_options_of_a_spec_reach_the_rules(folder, sets, target, expected):
    assert codes(folder, *sets, target=target) == expected


def test_without_tf32_the_plan_prices_fp32_in_fp32(folder):
    only = ["quantize.precision=fp32"]
    with_tf32 = make_plan(load_spec(folder / "kdcompile.toml", only, "jetson")).target
    spec = load_spec(folder / "kdcompile.toml", [*only, "compile.tf32=false"], "jetson")
    assert (with_tf32.fp32_in, make_plan(spec).target.fp32_in) == ("tf32", "fp32")


def test_a_dynamic_shape_reaches_the_rules(folder):
    shapes = "{min=[1,1,48,48],opt=[1,1,48,48],max=[1,1,96,96]}"
    spec = plan(folder, f"export.shape={shapes}").spec
    assert asked_of(spec).is_dynamic


@pytest.fixture
def exported(tmp_path):
    """An export whose network has an Erf and 12 channels."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,1,48,48] x) => (float[1,12,48,48] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, v)
        b = Erf (a)
        y = Conv <pads = [1, 1, 1, 1]> (b, w)
    }"""
    model = parser.parse_model(text)
    for name, size in (("v", (12, 1, 3, 3)), ("w", (12, 12, 3, 3))):
        tensor = numpy_helper.from_array(np.zeros(size, np.float32), name)
        model.graph.initializer.append(tensor)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    onnx.save(model, tmp_path / "student.onnx")
    return Artifact("export", "0", tmp_path, {"student.onnx": "0"}, {})


def test_the_exported_student_is_held_against_dla_and_tile(folder, exported):
    on_dla = plan(folder, "compile.dla=0", "quantize.precision=fp16", target="jetson-agx-orin-64gb")
    network = student_network(on_dla, {"export": exported}, "fp16")
    assert (network.opset, network.ir_version) == (17, 8)
    found = {v.code: v for v in met_by(on_dla, network)}
    assert list(found) == ["dla-operator", "channel-tile"]
    assert found["dla-operator"].where == "n1"
    assert "a DLA has no Erf; 1 of 3 operators" in found["dla-operator"].message
    assert found["channel-tile"].where == "n2, n0"
    assert "(most: n2 12 to 12, n0 1 to 12)" in found["channel-tile"].message


def side(folder, exported, *sets, target="jetson-agx-orin-64gb", at="fp16"):
    planned = plan(folder, *sets, target=target)
    network = student_network(planned, {"export": exported}, at)
    return on_dla(planned.target, asked_of(planned.spec), network)


def test_each_layer_is_told_its_side_of_the_dla(folder, exported):
    layers = side(folder, exported, "compile.dla=0")
    assert [(e.name, e.type, e.reason) for e in layers] == [
        ("n0", "Conv", ""), ("n1", "Erf", "a DLA has no Erf"), ("n2", "Conv", ""),
    ]  # fmt: skip
    shapes = "export.shape={min=[1,1,48,48],opt=[1,1,48,48],max=[1,1,96,96]}"
    for sets, at, why in (((), "int8", "Q/DQ"), ((shapes,), "fp16", "no dynamic shapes")):
        whole = side(folder, exported, "compile.dla=1", *sets, at=at)
        assert len(whole) == 3
        assert all(why in layer.reason for layer in whole)
    assert side(folder, exported) is None  # not asked
    assert side(folder, exported, "compile.dla=0", target="jetson") is None  # it has none
    one = ["compile.dla=1"]
    assert side(folder, exported, *one, target="jetson-orin-nx-8gb") is None  # it has one
    assert side(folder, exported, *one, target="jetson-orin-nx-16gb") is not None


def test_the_text_names_what_falls_back_and_predicts_no_dla(folder):
    found = run_on(folder, "jetson-orin-nx-16gb", "quantize.precision=fp16", "compile.dla=0")
    told = json.loads(found.stdout)
    text = "\n".join(lines(told))
    assert {layer["type"] for layer in told["dla"] if not layer["reason"]} >= {"Conv", "Relu"}
    on_gpu = [layer for layer in told["dla"] if layer["reason"]]
    taken = len(told["dla"]) - len(on_gpu)
    assert f"dla        takes {taken} of {len(told['dla'])} operators (" in text
    assert "its latency is not predicted, as none was measured" in text
    assert "decide no gate: speedup is skipped, and stays pending for the device" in text
    row = {"name": "x", "type": "Erf", "reason": "a DLA has no Erf"}
    free = {"name": "y", "type": "Conv", "reason": ""}
    text = "\n".join(lines(told | {"dla": [free, *[row] * 14, free]}))
    assert "takes 2 of 16 operators (2 Conv); 2 changes of side" in text
    assert text.count("GPU: x (Erf): a DLA has no Erf") == 12
    assert "GPU: 2 more, in --json" in text


def test_a_module_without_a_dla_refuses_it_by_name(folder):
    found = run_on(folder, "jetson-orin-nano-8gb", "quantize.precision=fp16", "compile.dla=0")
    assert found.exit_code == 1
    told = json.loads(found.stdout)
    (rule,) = [rule for rule in told["rules"] if rule["code"] == "dla-cores"]
    assert "jetson-orin-nano-8gb has no DLA" in rule["message"]
    assert told["dla"] is None


def test_before_the_export_the_operators_are_those_of_the_search(folder, exported, tmp_path):
    waiting = plan(folder)
    assert student_network(waiting, {}, "int8") is None
    without = Artifact("search", "0", tmp_path, {"estimate.json": "0"}, {})
    assert student_network(waiting, {"search": without}, "int8") is None
    model, shape = onnx.load(exported.file("student.onnx")), waiting.spec.export.profile[1]
    rows = [vars(operator) for operator in operators_of(model, shape)]
    (tmp_path / OPERATORS).write_text(json.dumps(rows))
    search = Artifact("search", "0", tmp_path, {OPERATORS: "0"}, {})
    found = student_network(waiting, {"search": search}, "int8")
    assert found.operators == student_network(waiting, {"export": exported}, "int8").operators


def test_the_stages_of_a_refused_plan_are_left_as_they_were(folder):
    store = folder / ".kdcompile"

    def files():
        kept = {name for name in os.listdir(store) if name in STAGES} if store.is_dir() else set()
        return {*os.listdir(folder)} - {store.name} | kept  # a log is kept of whatever was asked

    before = files()
    run(folder, "--set", "quantize.precision=fp8")
    assert files() == before
