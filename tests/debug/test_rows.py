"""Networks of several named inputs and outputs, compared tensor by tensor."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from two_inputs import network, samples

from kdcompile.backends import engine
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.ports import Port, Ports
from kdcompile.debug.locate import locate
from kdcompile.debug.runners import EngineSide, OnnxSide
from kdcompile.debug.tensors import WHOLE
from kdcompile.debug.tolerance import SHARE, Tolerance, of_errors
from kdcompile.debug.torch_runners import ModuleSide, ProgramSide, exported_program
from kdcompile.debug.variants import Ladder, Rung, climb
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.rows import on_rows
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.onnx_graph.graph import copied
from kdcompile.remote.open import facts_of, open_place
from kdcompile.tasks.metric import RELATIVE, Metric
from kdcompile.tasks.task import find_task

PORTS = {
    "signal": Port("signal", (1, 2, 24), "float32"),
    "ids": Port("ids", (1, 5), "int64"),
}
OUTPUTS = Ports((Port("scores", (1, 6), "float32"), Port("trace", (1, 3, 12), "float32")))
NO_SHAPES = ([], [], [])


def ports_of(*names):
    return Ports(tuple(PORTS[name] for name in names))


def module_of(*names):
    return on_rows(network(), ports_of(*names))


@pytest.fixture(scope="module")
def module():
    return module_of("signal", "ids")


@pytest.fixture(scope="module")
def program(module):
    return exported_program(module, NO_SHAPES)


@pytest.fixture(scope="module")
def model(module, tmp_path_factory):
    return onnx_from_module(module, tmp_path_factory.mktemp("rows") / "two.onnx", NO_SHAPES)


def rows(*names):
    given = samples(3)
    return [ports_of(*names).pack({n: given[n][i] for n in names}, f"sample {i}") for i in range(3)]


ROWS = rows("signal", "ids")


def ladder_of(*rungs, images=ROWS):
    task, limit = find_task("generic"), Tolerance(0.01, "given", 1)
    return Ladder(rungs, images, task, RELATIVE, None, limit, 20.0, "waves", outputs=OUTPUTS)


def found_between(*rungs):
    ladder = ladder_of(*rungs)
    step = climb(ladder)[1]
    assert step.verdict == "failed"
    return locate(ladder, *rungs, step)


def onnx_rung(model, **settings):
    return Rung("onnx", "", side=OnnxSide(model, rows=True), model=model, **settings)


@pytest.mark.parametrize("names", [("signal", "ids"), ("ids", "signal")])
def test_the_first_three_rungs_agree_in_either_order_of_the_inputs(names, tmp_path):
    module, images = module_of(*names), rows(*names)
    side = ProgramSide(exported_program(module, NO_SHAPES), ports_of(*names))
    rungs = (
        Rung("pytorch", "", side=ModuleSide(module, images[0])),
        Rung("exported", "", side=side),
        onnx_rung(onnx_from_module(module, tmp_path / "two.onnx", NO_SHAPES)),
    )
    steps = climb(ladder_of(*rungs, images=images))
    assert [step.verdict for step in steps] == ["reference", "passed", "passed"]
    assert all(step.sqnr_db > 100 for step in steps[1:])


def test_every_side_gives_its_outputs_by_name_and_together(module, program, model):
    wanted = module(torch.from_numpy(ROWS[0])).detach().numpy()
    for side in (
        ModuleSide(module, ROWS[0]), ProgramSide(program, ports_of("signal", "ids")),
        OnnxSide(model, rows=True),
    ):  # fmt: skip
        found = side.run(ROWS[0])
        assert side.output == WHOLE
        assert [found[name].shape for name in side.ends] == [(1, 6), (1, 3, 12)]
        np.testing.assert_allclose(found[WHOLE], wanted, atol=1e-5)


def changed(module, name, factor=-1.0):
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_submodule(name).weight *= factor
    return other


@pytest.mark.parametrize("name", ["conv.0", "table", "mix", "side"])
def test_a_program_that_leaves_its_module_is_named_by_the_module(module, program, name):
    rungs = (
        Rung("pytorch", "", side=ModuleSide(changed(module, name), ROWS[0])),
        Rung("exported", "", side=ProgramSide(program, ports_of("signal", "ids"))),
    )
    found = found_between(*rungs)
    assert (found.reference, found.named.module) == (name, name)


@pytest.mark.parametrize("name", ["conv.3", "mix", "head", "side"])
def test_an_onnx_file_that_leaves_its_program_is_named(module, model, name):
    program = exported_program(changed(module, name), NO_SHAPES)
    side = ProgramSide(program, ports_of("signal", "ids"))
    found = found_between(Rung("exported", "", side=side), onnx_rung(model))
    # a norm is folded into the convolution before it, whose tensor is the norm's
    assert found.named.module == ("conv.4" if name == "conv.3" else name)


def faulty(model, weight, factor=-1.0):
    suspect = copied(model)
    tensor = next(t for t in suspect.graph.initializer if t.name == weight)
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return suspect


@pytest.mark.parametrize("name", ["mix", "head", "side"])
def test_a_fault_in_one_output_or_both_is_found_between_files(model, name):
    weight = next(
        t.name for t in model.graph.initializer if t.name.startswith(f"{name}.weight")
    )  # fmt: skip
    found = found_between(onnx_rung(model), onnx_rung(faulty(model, weight)))
    assert found.named.module == name
    assert any(f"constant {weight} differs" in why for why in found.why)


def test_an_output_that_is_small_beside_the_others_counts_as_they_do(model):
    """Of the row as a whole it would be less than any rung may differ by."""
    sound, suspect = (faulty(model, "head.weight", f) for f in (1e-6, -1e-6))
    sound, suspect = (faulty(m, "head.bias", 0.0) for m in (sound, suspect))
    step = climb(ladder_of(onnx_rung(sound), onnx_rung(suspect)))[1]
    assert step.sqnr_db > 60
    assert step.verdict == "failed"
    assert step.noise == step.max_rel_error == pytest.approx(2, rel=1e-3)
    assert found_between(onnx_rung(sound), onnx_rung(suspect)).named.module == "head"


def test_half_precision_passes_as_a_rung(model):
    half = to_fp16(model)
    rung = Rung("fp16", "", "fp16", side=OnnxSide(half, rows=True), model=half)
    step = climb(ladder_of(onnx_rung(model), rung))[1]
    assert step.verdict == "passed"
    assert 1e-5 < step.max_rel_error < 1e-2


def test_an_engine_is_searched_by_building_it_anew(model, tmp_path):
    suspect, path = faulty(model, "mix.weight"), tmp_path / "model.onnx"
    onnx.save(suspect, path)
    with open_place(None, "onnxruntime") as place:
        place.ports = ports_of("signal", "ids")
        board = Board(None, "onnxruntime", place.label, facts_of(place.about), "host")
        shapes = ([1, 2, 24],) * 3
        built = engine.build(place, board, path, "fp32", Compile(), shapes)
        place.call("load", path=built.there, name="shipped")
        side = EngineSide(
            place, board, suspect, "shipped", "fp32", Compile(), shapes, rows=True
        )  # fmt: skip
        layers = built.about["layers"]
        rung = Rung("engine", "", side=side, model=suspect, layers=layers)
        found = found_between(onnx_rung(model), rung)
    assert found.named.module == "mix"
    assert any("changes fusion" in note for note in found.notes)


def test_the_tolerance_of_relative_errors_adds_in_squares():
    errors = np.full(50, 0.2)
    found = of_errors(RELATIVE, 0.15, errors)
    assert found.noise == pytest.approx(np.sqrt((0.2 + SHARE * 0.15) ** 2 - 0.2**2), rel=1e-6)
    score = Metric("score", RELATIVE.of)  # its allowance is a share of its own value
    assert of_errors(score, 0.15, errors).noise == pytest.approx(SHARE * 0.15)
