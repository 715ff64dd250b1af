"""The forms of a network, and the search between each two of them."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kdcompile.backends import engine
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.debug.locate import locate
from kdcompile.debug.runners import EngineSide, OnnxSide
from kdcompile.debug.tensors import exposed, stored
from kdcompile.debug.tolerance import Tolerance
from kdcompile.debug.torch_runners import ModuleSide, ProgramSide, exported_program
from kdcompile.debug.variants import Ladder, Rung, climb
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.onnx_graph.shapes import element_types
from kdcompile.remote.open import facts_of, open_place
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

SHAPE = [1, 3, 16, 16]


def ladder_of(images, *rungs):
    tolerance = Tolerance(0.01, "given", 1)
    return Ladder(rungs, images, find_task("counting"), MAE, None, tolerance, 20.0, "noise")


@pytest.fixture(scope="module")
def program(module):
    return exported_program(module, (SHAPE, SHAPE, SHAPE))


def test_the_first_three_rungs_agree(module, program, model, images):
    rungs = (
        Rung("pytorch", "", side=ModuleSide(module, images[0])),
        Rung("exported", "", side=ProgramSide(program)),
        Rung("onnx", "", side=OnnxSide(model), model=model),
    )
    steps = climb(ladder_of(images, *rungs))
    assert [step.verdict for step in steps] == ["reference", "passed", "passed"]
    assert [step.against for step in steps] == [None, "pytorch", "exported"]
    assert steps[2].sqnr_db > 100
    assert steps[2].cosine == pytest.approx(1, abs=1e-9)
    assert 0 < steps[2].max_rel_error < 1e-5


def changed(module, name):
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_submodule(name).weight *= -1
    return other


@pytest.mark.parametrize("name", ["stem.0", "norm", "second"])
def test_a_program_that_leaves_its_module_is_named_by_the_module(module, program, images, name):
    rungs = (
        Rung("pytorch", "", side=ModuleSide(changed(module, name), images[0])),
        Rung("exported", "", side=ProgramSide(program)),
    )
    ladder = ladder_of(images, *rungs)
    found = locate(ladder, *rungs, climb(ladder)[1])
    assert found.reference == name
    assert found.named.module == name
    assert "aten." in found.named.operator


def test_an_onnx_file_that_leaves_its_program_is_named(module, model, images):
    name = "second"
    program = exported_program(changed(module, name), (SHAPE, SHAPE, SHAPE))
    rungs = (
        Rung("exported", "", side=ProgramSide(program)),
        Rung("onnx", "", side=OnnxSide(model), model=model),
    )
    ladder = ladder_of(images, *rungs)
    found = locate(ladder, *rungs, climb(ladder)[1])
    assert found.named.module == name
    assert found.named.operator == "Conv"


def test_a_module_that_runs_twice_names_no_value(images):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.once = torch.nn.ReLU(), torch.nn.Sigmoid()

        def forward(self, image):
            return self.once(self.act(self.act(image) - 1))

    assert ModuleSide(Twice(), images[0]).once == ("once",)


def test_hooks_are_gone_after_a_run(module, images):
    ModuleSide(module, images[0]).run(images[0], ["stem", "second"])
    assert not any(layer._forward_hooks for layer in module.modules())


def test_half_tensors_are_stored_as_half(model, images):
    side = OnnxSide(to_fp16(model))
    found = side.run(images[0], ["relu", "layer_norm"])
    for value in found.values():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, value.astype(np.float16).astype(np.float32))
    kinds = element_types(side.model)
    nodes = stored(side.model, kinds).graph.node
    assert sum(node.op_type == "Identity" for node in nodes) >= len(model.graph.node)


def test_exposing_keeps_the_output_and_changes_no_model(model):
    before = model.SerializeToString()
    half = to_fp16(model)
    more, names = exposed(half, ["relu", half.graph.output[0].name], element_types(half))
    assert names == {"relu": "relu__exposed", "density": "density"}
    assert [v.name for v in more.graph.output] == ["density", "relu__exposed"]
    onnx.checker.check_model(more, full_check=True)
    assert model.SerializeToString() == before


def test_a_network_that_the_runtime_refuses_is_an_error(model, images):
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(KDError, match="ONNX Runtime does not run") as caught:
        OnnxSide(broken).run(images[0])
    assert caught.value.code == "parity-refused"


@pytest.fixture
def place():
    with open_place(None, "onnxruntime") as opened:
        yield opened


def engine_rung(place, model, folder, images):
    """The rung of an engine of a network, at a place."""
    board = Board(None, "onnxruntime", place.label, facts_of(place.about), "host")
    path = folder / "model.onnx"
    onnx.save(model, path)
    built = engine.build(place, board, path, "fp32", Compile(), (SHAPE, SHAPE, SHAPE))
    place.call("load", path=built.there, name="shipped")
    side = EngineSide(place, board, model, "shipped", "fp32", Compile(), (SHAPE, SHAPE, SHAPE))
    return Rung("engine", "", side=side, model=model, layers=built.about["layers"])


def counted(monkeypatch):
    """The settings of each engine that is built from now on."""
    built, build = [], engine.build

    def noted(place, board, onnx_file, precision, settings, profile):
        built.append(settings)
        return build(place, board, onnx_file, precision, settings, profile)

    monkeypatch.setattr(engine, "build", noted)
    return built


def test_an_engine_is_searched_by_building_it_anew(
    place, faults, model, images, tmp_path, monkeypatch
):
    suspect = faults.copied(model)
    conv = [node for node in suspect.graph.node if node.op_type == "Conv"][1]
    assert faults.wrong_padding(suspect, conv)
    rungs = (
        Rung("onnx", "", side=OnnxSide(model), model=model),
        engine_rung(place, suspect, tmp_path, images),
    )
    ladder = ladder_of(images, *rungs)
    step = climb(ladder)[1]
    assert step.verdict == "failed"
    builds = counted(monkeypatch)
    found = locate(ladder, *rungs, step)
    assert found.tensors > 8
    assert len(builds) <= 3  # seven tensors in the first, the inputs, what is told of the tensor
    assert found.named.node == conv.name
    assert found.named.layers == [conv.name]
    assert found.named.module == "first.0"
    assert any("changes fusion" in note for note in found.notes)


def test_probes_leave_no_engine_behind(place, model, images, tmp_path):
    rung = engine_rung(place, model, tmp_path, images)
    before = {p.name for p in Path(place.work).rglob("*") if "probe" in p.name}
    found = rung.side.run(images[0], ["relu"])
    assert set(found) == {"relu", "density"}
    after = {p.name for p in Path(place.work).rglob("*") if "probe" in p.name}
    assert after == before


def test_a_probe_has_the_settings_of_the_engine(place, model, images, monkeypatch):
    board = Board(None, "onnxruntime", place.label, facts_of(place.about), "host")
    asked = Compile(workspace_mb=77)
    side = EngineSide(place, board, model, "shipped", "fp32", asked, (SHAPE, SHAPE, SHAPE))
    builds = counted(monkeypatch)
    side.run(images[0], ["relu"])
    side.run(images[1], ["relu"])
    assert builds == [asked]


def test_a_fault_that_goes_where_several_tensors_are_looked_at_is_searched_one_by_one(
    faults, model, images
):
    suspect = faults.copied(model)
    conv = [node for node in suspect.graph.node if node.op_type == "Conv"][1]
    assert faults.wrong_padding(suspect, conv)
    looks = []

    class Fused(OnnxSide):
        """Sound as soon as two of its tensors are looked at."""

        levels = 3

        def run(self, image, tensors=()):
            looks.append(len(tensors))
            return (sound if len(tensors) > 1 else super()).run(image, tensors)

    sound = OnnxSide(model)
    rungs = (
        Rung("onnx", "", side=OnnxSide(model), model=model),
        Rung("engine", "", side=Fused(suspect), model=suspect),
    )
    ladder = ladder_of(images, *rungs)
    found = locate(ladder, *rungs, climb(ladder)[1])
    assert found.named.node == conv.name
    assert not any("agrees" in note for note in found.notes)
    assert sum(count > 1 for count in looks) in (2, 4)  # the first, and perhaps a node's inputs
