"""The Backend protocol: capability tables, and a backend that another package brings."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from plugin_site import install
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.backends import engine
from kdcompile.backends.base import register
from kdcompile.cli import cli
from kdcompile.config.load import load_spec
from kdcompile.config.spec import Spec
from kdcompile.config.step import Board
from kdcompile.core import backends, plugins
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.gates import deployed
from kdcompile.passes.manager import find_board
from kdcompile.remote.open import facts_of, open_place

CPU = targets.load("cpu")
TOY = '''
"""A backend in another package: the reference evaluator of the onnx package."""

import shutil

import numpy as np

from kdcompile.backends.base import Capabilities, Engine, Layer, Tensor, register
from kdcompile.core.errors import ToolMissingError


@register("toy")
class Toy:
    title, compiles = "Toy", False
    precisions = ("fp32",)
    version = "1.2.3"

    def capabilities(self, target):
        return Capabilities(("fp32",), (7, 18), int8=None)

    def differences(self, target, about):
        return [] if target.name == "cpu" else ["it is no board"]

    @staticmethod
    def opener(path):
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(path)
        return lambda image: evaluator.run(None, {"image": image})[0]

    def build(self, onnx, engine, options):
        shutil.copyfile(onnx, engine)
        return Engine(engine, flags=(options.precision,), layers={"all": ("a", "b")})

    def load(self, engine, threads=0):
        return Loaded(engine)


class Loaded:
    def __init__(self, path):
        import onnx
        from onnx.reference import ReferenceEvaluator

        graph = onnx.load(path).graph
        self.evaluator = ReferenceEvaluator(str(path))
        self.inputs, self.outputs = ({p.name: self.tensor(p) for p in ports}
                                     for ports in (graph.input, graph.output))

    @staticmethod
    def tensor(port):
        sizes = port.type.tensor_type.shape.dim
        return Tensor("float32", tuple(d.dim_value or -1 for d in sizes))

    def run(self, inputs):
        return dict(zip(self.outputs, self.evaluator.run(None, inputs)))

    def bind(self, inputs):
        return lambda: self.evaluator.run(None, inputs)

    def profile(self, inputs, iterations):
        return [Layer("all", 0.5 * iterations, "fp32", ("a", "b"))]


class Absent(Toy):
    @property
    def version(self):
        raise ToolMissingError("tool-missing", "no toys here", fix="buy one")
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The backend `toy`, registered by importing a module of another package."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "toy_backend.py").write_text(TOY)
    sys.path.append(str(folder))  # monkeypatch would also take back what builds put there
    monkeypatch.setattr(plugins, "_known", dict(plugins._known))
    monkeypatch.setenv("KDCOMPILE_CACHE", str(tmp_path / "cache"))
    yield importlib.import_module("toy_backend")
    del sys.modules["toy_backend"]
    sys.path.remove(str(folder))


@pytest.mark.parametrize("name", backends.names())
@pytest.mark.parametrize("target", ["jetson", "h100", "cpu", "intel-cpu"])
def test_every_backend_has_a_table_for_every_target(name, target):
    able = backends.find(name).capabilities(targets.load(target))
    assert "fp32" in able.precisions
    assert able.opsets[0] <= 17 <= able.opsets[1]
    assert set(able.precisions) <= set(backends.find(name).precisions)
    assert not able.dla or able.dla_precisions


def test_the_tables_follow_the_target():
    def tensorrt(name):
        return backends.find("tensorrt").capabilities(targets.load(name))

    agx, old, nano = (tensorrt(n) for n in ("jetson-agx-orin-64gb", "jetson-xavier-nx", "jetson"))
    assert (agx.dla, nano.dla) == (2, 0)
    assert (agx.opsets[1], old.opsets[1]) == (18, 16)
    assert "bf16" in agx.precisions
    assert "bf16" not in old.precisions
    assert agx.options == {"optimization_level", "deterministic", "dla", "tf32"}
    openvino = backends.find("openvino").capabilities(targets.load("intel-cpu"))
    assert (openvino.precisions, openvino.int8, openvino.options) == (
        ("fp32", "int8"), "qdq", frozenset(),
    )  # fmt: skip


def test_the_names_are_one_list():
    listed = Spec.model_json_schema()["$defs"]["Compile"]["properties"]["backend"]["enum"]
    assert listed == ["auto", *backends.names()]
    for command in ("bench", "doctor"):
        shown = CliRunner().invoke(cli, [command, "--backend", "toast"]).output
        assert "'openvino'" in shown
    with pytest.raises(KDError) as error:
        backends.find("openvno")
    assert error.value.code == "backend-unknown"
    assert "openvino" in error.value.message


def test_a_name_is_taken_once(toy):
    for name, owner in (("toy", "toy_backend"), ("openvino", "kdcompile")):
        assert backends.find(name).title  # imported
        with pytest.raises(KDError) as error:
            register(name)(int)
        assert error.value.code == "plugin-duplicate"
        assert f"is defined by {owner}" in error.value.message
    assert register("toy")(toy.Toy) is toy.Toy


def test_an_installed_package_s_entry_point_is_a_backend(toy, tmp_path, monkeypatch):
    entries = {"second": "toy_backend:Toy", "tensorrt": "toy_backend:Absent"}
    install(tmp_path / "installed", "acme-toy", "1.0", {"backends": entries})
    monkeypatch.syspath_prepend(tmp_path / "installed")
    plugins.entries.cache_clear()
    try:
        assert "second" in backends.names()
        assert isinstance(backends.find("second"), toy.Toy)
        assert backends.is_served("second")
        with pytest.raises(KDError) as error:
            backends.find("tensorrt")
        assert error.value.code == "plugin-duplicate"
    finally:
        monkeypatch.undo()
        plugins.entries.cache_clear()
        plugins._load.cache_clear()


def test_a_list_of_the_names_imports_no_backend():
    code = (
        "import sys; from kdcompile.core import backends; assert 'openvino' in backends.names();"
        "print(*(name for name in sys.modules if name.startswith('kdcompile.backends')))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_a_registered_backend_builds_and_is_verified(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SAMPLE_MS", 1.0)  # the evaluator is slow
    monkeypatch.setattr(deployed, "SECONDS", 1.0)
    build = SmallBuild(tmp_path, sets=["compile.backend=toy"])
    board, target = find_board(load_spec(build.root / "kdcompile.toml", build.sets), CPU, None)
    assert (board.backend, board.version, board.evidence) == ("toy", "1.2.3", "device")
    for stage in ("calibrate", "compile", "verify"):
        build.run(stage, target, board)
    choice = build.made["compile"].json("choice.json")
    assert [(row["precision"], row["evidence"]) for row in choice["candidates"]] == [
        ("fp32", "device")
    ]
    assert "toy 1.2.3 does not build it" in choice["refused"]["int8"]
    built = build.made["compile"].json("engines.json")["fp32"]
    assert built["build"]["flags"] == ["fp32"]
    assert built["profile"]["layers"][0]["onnx"] == ["a", "b"]
    assert build.report()["environment"]["backend_version"] == "1.2.3"
    assert "ReferenceEvaluator" in build.made["compile"].file("opener.py").read_text()
    with pytest.raises(KDError) as error:
        find_board(load_spec(build.root / "kdcompile.toml", build.sets), targets.load("h100"), None)
    assert error.value.code == "board-mismatch"
    assert "it is no board" in error.value.message


def test_its_process_answers_like_the_agent(toy, tmp_path):
    build = SmallBuild(tmp_path)
    onnx, image = build.made["export"].file("student.onnx"), np.ones((1, 3, 16, 16), np.float32)
    with open_place(None, "toy") as place:
        assert (place.about["backend"], place.about["gpu"]) == ("toy", None)
        assert list(place.about["precisions"]) == ["fp32"]
        board = Board(None, "toy", place.label, facts_of(place.about), "host")
        assert board.version == "1.2.3"
        built = place.path("toy.engine")
        with pytest.raises(KDError) as error:
            place.call("build", onnx=place.put(onnx), engine=built, precision="int8")
        assert error.value.code == "precision-refused"
        place.call("build", onnx=place.put(onnx), engine=built, precision="fp32")
        place.call("load", path=built)
        for options, clock in (({}, "wall"), ({"mode": "end_to_end"}, "end_to_end")):
            found = place.time({"image": image}, iterations=3, samples=True, **options)
            assert len(found["samples"][clock]) == found[clock]["n"] == 3
        assert place.time({"image": image}, iterations=3, streams=2)["per_second"] > 0
        for shape, code in (((1, 3, 8, 8), "shape-refused"), ((3, 16, 16), "shape-refused")):
            with pytest.raises(KDError) as error:
                place.run({"image": np.ones(shape, np.float32)})
            assert error.value.code == code
        with pytest.raises(KDError) as error:
            place.run({"picture": image})
        assert error.value.code == "input-missing"
        with pytest.raises(KDError) as error:
            place.call("load", path=built, graph=True)
        assert error.value.code == "mode-refused"
        (output,) = place.run({"image": image}).values()
    expected = toy.Toy().opener(str(onnx))(image)
    assert np.array_equal(output, expected)
    with pytest.raises(KDError) as error:
        open_place("ssh://board", "toy")
    assert error.value.code == "backend-local"


def test_a_library_that_is_absent_is_an_absent_tool(toy):
    register("absent")(toy.Absent)
    with pytest.raises(ToolMissingError) as error:
        open_place(None, "absent")
    assert (error.value.message, error.value.fix) == ("no toys here", "buy one")


def test_bench_times_an_onnx_file_with_it(toy, tmp_path):
    onnx = SmallBuild(tmp_path).made["export"].file("student.onnx")
    arguments = ["bench", str(onnx), "--backend", "toy", "--samples", "20", "--seconds", "20"]
    # the choices of --backend are listed as the command line is imported, before the test's backend
    option = next(p for p in cli.commands["bench"].params if p.name == "backend")
    option.type.choices = backends.names()
    found = CliRunner().invoke(cli, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    facts = json.loads(found.stdout)["candidate"]["environment"]["facts"]
    assert (facts["backend"], facts["toy_version"]) == ("toy", "1.2.3")
