"""`kdcompile bisect` and `verify --parity` on the command line."""

import importlib
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from kdcompile import api
from kdcompile.cli.bisect import bisect
from kdcompile.core.errors import KDError
from kdcompile.debug.runners import OnnxSide
from kdcompile.debug.tolerance import Tolerance
from kdcompile.debug.variants import Ladder, Rung
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

verify = importlib.import_module("kdcompile.cli.verify")
SCOPES = {"middle": "['', 'body', 'body.1', 'middle']"}


def network(middle=1.0):
    """Three convolutions of one channel; the second one's weight is given."""
    nodes, weights, name = [], [], "image"
    for i, (out, gain) in enumerate((("first", 2.0), ("middle", middle), ("density", 0.5))):
        node = helper.make_node("Conv", [name, f"w{i}"], [out], name=f"node_{out}")
        if out in SCOPES:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=SCOPES[out])
        nodes.append(node)
        value = np.full((1, 1, 1, 1), gain, np.float32)
        weights.append(numpy_helper.from_array(value, f"w{i}"))
        name = out
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 1, 4, 4])
        for end in ("image", "density")
    ]
    graph = helper.make_graph(nodes, "three", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def ladder(monkeypatch):
    """`ladder(middle)`: the commands see an ONNX file and one whose second weight differs."""

    def give(middle):
        images = [np.random.default_rng(i).random((1, 1, 4, 4), np.float32) for i in range(3)]
        reference, suspect = network(), network(middle)
        made = Ladder(
            rungs=[
                Rung("pytorch", "", absent="no module"),
                Rung("exported", "", absent="no program"),
                Rung("onnx", "", side=OnnxSide(reference), model=reference),
                Rung("int8", "", "int8", OnnxSide(suspect), model=suspect),
                Rung("engine", "", absent="no place"),
            ],
            images=images,
            task=find_task("counting"),
            metric=MAE,
            true=None,
            tolerance=Tolerance(0.05, "of this test", 9),
            min_sqnr_db=20.0,
            source="3 made images",
        )

        @contextmanager
        def opened(*_values):
            yield made

        monkeypatch.setattr(api, "open_ladder", opened)
        return made

    return give


def run(command, *arguments):
    return CliRunner().invoke(command, list(arguments))


def test_verify_parity_prints_the_ladder_and_fails(ladder):
    ladder(3.0)
    done = run(verify.verify, "--parity")
    assert done.exit_code == 3, done.output
    assert "int8" in done.output
    assert "failed: int8; kdcompile bisect names" in done.output
    assert "engine: no place" in done.output


def test_verify_parity_passes_a_sound_ladder(ladder):
    ladder(1.001)
    done = run(verify.verify, "--parity", "--json")
    found = json.loads(done.output)
    assert (done.exit_code, found["exit_code"]) == (0, 0)
    verdicts = [rung["verdict"] for rung in found["rungs"]]
    assert verdicts == ["absent", "absent", "reference", "passed", "absent"]
    assert found["tolerance"] == 0.05


def test_bisect_names_tensor_node_module_and_reason(ladder):
    ladder(3.0)
    done = run(bisect)
    assert done.exit_code == 3, done.output
    for part in ("at the tensor middle", "module  body.1", "node    Conv node_middle",
                 "constant w1 differs by 2", "3 tensors could be compared"):  # fmt: skip
        assert part in done.output


def test_bisect_as_json_is_json(ladder):
    ladder(3.0)
    done = run(bisect, "--json")
    found = json.loads(done.output)
    assert found["finding"]["named"]["module"] == "body.1"
    assert found["finding"]["tensor"] == "middle"
    assert found["exit_code"] == done.exit_code == 3


@pytest.mark.parametrize("arguments", [(), ("--rung", "int8"), ("--rung", "rounded")])
def test_bisect_of_a_sound_ladder_says_so(ladder, arguments):
    ladder(1.0)
    done = run(bisect, *arguments)
    assert done.exit_code == 0, done.output
    assert "nothing to search for" in done.output
    assert json.loads(run(bisect, "--json", *arguments).output)["finding"] is None


@pytest.mark.parametrize(("rung", "code"), [("engine", "rung-absent"), ("int4", "rung-unknown")])
def test_a_rung_that_is_not_there_is_an_error(ladder, rung, code):
    ladder(3.0)
    done = run(bisect, "--rung", rung)
    assert isinstance(done.exception, KDError)
    assert done.exception.code == code


def test_a_limit_moves_what_counts_as_different(ladder):
    ladder(3.0)
    tight = json.loads(run(bisect, "--json", "--limit", "0.001").output)["finding"]
    assert (tight["tensor"], tight["limit"]) == ("middle", 0.001)
    assert run(bisect, "--limit", "0").exit_code == 2


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (verify.verify, ("--parity", "--require", "device"), "--require is of the gates"),
        (
            verify.verify,
            ("--parity", "--trusted", "key.pub"),
            "--trusted and --expect are of a BUNDLE",
        ),
        (bisect, ("--trusted", "key.pub"), "--trusted and --expect are of a BUNDLE"),
    ],
)
def test_options_of_the_other_kind_are_usage_errors(command, arguments, says):
    done = run(command, *arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_a_bundle_takes_no_options_of_a_spec(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    done = run(bisect, str(tmp_path), "--target", "cpu")
    assert done.exit_code == 2
    assert "a bundle is built" in done.output


def test_a_damaged_bundle_is_refused_before_it_is_run(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    done = run(bisect, str(tmp_path))
    assert isinstance(done.exception, KDError)
    assert done.exception.code == "bundle-corrupt"


def test_where_nothing_is_compared_nothing_has_passed(ladder):
    made = ladder(1.0)
    made.rungs[3] = replace(made.rungs[3], side=None, model=None, absent="nothing is rounded")
    for command, arguments in ((verify.verify, ("--parity",)), (bisect, ())):
        result = run(command, *arguments)
        assert result.exit_code == 5
        assert "inconclusive: no rung could be compared with another" in result.output
        assert json.loads(run(command, *arguments, "--json").output)["exit_code"] == 5


def infinite(model):
    """A weight that makes every output infinite."""
    weight = model.graph.initializer[1]
    weight.CopyFrom(numpy_helper.from_array(np.full((1, 1, 1, 1), np.inf, np.float32), weight.name))
    return model


def test_what_is_no_number_is_traced_to_the_rung_that_made_it(ladder):
    made, suspect = ladder(1.0), infinite(network())
    side = OnnxSide(suspect)
    made.rungs[3] = replace(made.rungs[3], side=side, model=suspect)
    made.rungs[4] = Rung("engine", "", "int8", side, model=suspect)
    done = run(bisect, "--rung", "engine")
    assert isinstance(done.exception, KDError)
    assert done.exception.code == "bisect-inherited"
    words = done.exception.fix.split(": ")[1].split(",")[0].split()
    assert words == ["kdcompile", "bisect", "--rung", "int8"]
    again = run(bisect, *words[2:])  # as the fix says
    assert again.exit_code == 3, again.output
    assert "int8 leaves onnx at the tensor middle" in again.output
    assert "failed too: engine" in again.output


@pytest.mark.parametrize(("first", "fix"), [("pytorch", "distill.lr"), ("onnx", "bisect SPEC")])
def test_what_the_first_rung_itself_gives_is_no_rungs_fault(ladder, first, fix):
    made, both = ladder(1.0), OnnxSide(infinite(network()))
    made.rungs[:] = [Rung(first, "", side=both), Rung("int8", "", "int8", both)]
    done = run(bisect)
    assert isinstance(done.exception, KDError)
    assert done.exception.code == "bisect-inherited"
    assert f"made by {first}" in done.exception.message
    assert fix in done.exception.fix
