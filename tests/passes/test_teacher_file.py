"""The teacher is exported once: for a plan, for other plans and for the build."""

import json

import onnx
import pytest
from safetensors.torch import load_file, save_file
from staged_ground import write_build

from kdcompile import targets
from kdcompile.config.step import Step
from kdcompile.core.files import write_json
from kdcompile.passes import export as export_stage
from kdcompile.passes import teacher_file as kept
from kdcompile.passes.manager import make_plan
from kdcompile.passes.show import describe

OLD = "h100"  # whose oldest TensorRT reads opset 17


@pytest.fixture
def exports(monkeypatch):
    """The type of every network that is exported."""
    found, export = [], kept.onnx_from_module

    def counted(module, path, *args, **settings):
        found.append(path.name)
        return export(module, path, *args, **settings)

    monkeypatch.setattr(kept, "onnx_from_module", counted)
    monkeypatch.setattr(export_stage, "onnx_from_module", counted)
    monkeypatch.setattr("kdcompile.latency_model.network_cost.onnx_from_module", counted)
    return found


@pytest.fixture
def load(tmp_path):
    return write_build(tmp_path)


def _plan(load, budget, *sets):
    return make_plan(load("target=jetson", f"student.budget={{ {budget} }}", *sets))


def test_plans_and_the_build_share_one_export(load, exports):
    plan = _plan(load, "width = 0.5")
    estimate = describe(plan).estimate
    assert exports == ["teacher.onnx"]  # the student's file follows from it
    assert estimate["student"]["macs"] < 0.5 * estimate["teacher"]["macs"]
    describe(plan)
    other = describe(_plan(load, "width = 0.75")).estimate
    assert other["student"]["macs"] > estimate["student"]["macs"]
    assert other["teacher"] == estimate["teacher"]
    assert exports == ["teacher.onnx"]
    _export(plan)
    assert exports == ["teacher.onnx", "student.onnx"]


def _export(plan):
    """The stage `export` of the student of a plan, untrained; its files are right and the same."""
    from kdcompile.models.factory import load_teacher
    from kdcompile.models.shrunk import student_from_architecture

    spec, store = plan.spec, plan.store
    architecture = plan.found()["search"].json("architecture.json")
    student = student_from_architecture(load_teacher(spec), architecture, spec.folder)

    def build(folder):
        save_file(student.state_dict(), folder / "student.safetensors")
        write_json(folder / "architecture.json", architecture)
        return {}

    step = Step("export", "e" * 64, spec, {"distill": store.make("distill", "d" * 64, build)})
    made = export_stage.run(step, store, plan.target)
    model = onnx.load(made.file("teacher.onnx"))
    assert model.ir_version <= plan.target.ir_version
    assert json.loads(made.file("parity.json").read_text())["teacher"]["sqnr_db"] > 80


def test_what_the_file_depends_on_makes_it_again(load, exports, tmp_path):
    describe(_plan(load, "width = 0.5"))
    weights = tmp_path / "teacher.safetensors"
    save_file({n: t * 1.5 for n, t in load_file(weights).items()}, weights)
    describe(_plan(load, "width = 0.5"))
    assert exports.count("teacher.onnx") == 2
    source = tmp_path / "model.py"
    source.write_text(source.read_text() + "\n")
    describe(_plan(load, "width = 0.5"))
    assert exports.count("teacher.onnx") == 3
    describe(_plan(load, "width = 0.5", "export.shape=[1, 1, 32, 32]"))
    assert exports.count("teacher.onnx") == 4


def test_a_target_or_a_shape_that_the_file_is_not_for(load):
    spec = load("target=jetson")
    assert kept.is_kept(spec, targets.load("jetson"))
    assert not kept.is_kept(spec, targets.load(OLD))
    free = "export.shape={ min = [1, 1, 16, 16], opt = [1, 1, 16, 16], max = [1, 1, 32, 32] }"
    assert not kept.is_kept(load("target=jetson", free), targets.load("jetson"))


def test_the_key_has_the_name_of_the_output(load):
    spec, hasher = load("target=jetson"), make_plan(load("target=h100")).store.hasher
    names = (("a", False), ("a", False), ("b", False), ("a", True))  # joined or not
    keys = [kept.network_key(spec, *name, hasher, kept.__name__, 1) for name in names]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
