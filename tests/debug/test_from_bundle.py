"""The ladder of a bundle: with a kit, without one, and with the engine that a board chose."""

import json
import shutil

import numpy as np
import onnx
import pytest
from near_place import NearGpu

from kdcompile.backends import engine
from kdcompile.backends.parity_inputs import write_carried
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.core.report import Report
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.debug import sources
from kdcompile.debug.locate import locate
from kdcompile.debug.runners import OnnxSide
from kdcompile.debug.sources import bundle_ladder
from kdcompile.debug.variants import climb
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.remote.kit import write_kit
from kdcompile.remote.open import facts_of, open_place
from kdcompile.targets import load
from kdcompile.tasks.task import find_task

TASK = find_task("counting")
SHAPE = [1, 3, 16, 16]
GATES = {"accuracy": {"metric": "mae", "margin": "15%"}, "parity": {"min_sqnr_db": 20.0}}
PREPARE = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (16, 16), (16, 16))


def listed(folder, precision):
    """A manifest of the folder as it is."""
    files = {p.relative_to(folder).as_posix(): {"sha256": file_sha256(p)}
             for p in folder.rglob("*") if p.is_file()}  # fmt: skip
    engine = "model.engine" if "model.engine" in files else None
    return {"task": "counting", "precision": precision, "model": "model.onnx", "engine": engine,
            "preprocess": "preprocess.json", "files": files}  # fmt: skip


@pytest.fixture
def bundle(faults, model, images, tmp_path):
    """`bundle(suspect)` -> folder, manifest, report: a Jetson's, with its kit."""
    rows = [{"name": str(i), "true": i, "student_fp32": i + 0.3 * (-1) ** i} for i in range(1, 40)]

    def make(suspect=None, precision="int8"):
        fp32, file = tmp_path / "student_fp32.onnx", tmp_path / f"student_{precision}.onnx"
        onnx.save(model, fp32)
        onnx.save(suspect or faults.in_precision(model, precision, images), file)
        for name in ("calibration", "preprocess"):
            (tmp_path / f"{name}.json").write_text("{}")
        folder = tmp_path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        outputs = {p: [OnnxSide(onnx.load(f)).run(i)["density"] for i in images]
                   for p, f in (("fp32", fp32), (precision, file))}  # fmt: skip
        write_kit(
            folder, load("jetson"), {"fp32": fp32, precision: file}, tmp_path / "calibration.json",
            tmp_path / "preprocess.json", (GATES, {}),
            (images, outputs), TASK, profile=(SHAPE, SHAPE, SHAPE), predicted=precision,
        )  # fmt: skip
        shutil.copyfile(file, folder / "model.onnx")
        report = Report("r", "jetson", "passed", 0, (), (), {}, {"predictions": rows})
        return folder, listed(folder, precision), report

    return make


def test_a_bundle_climbs_what_it_carries(bundle):
    with bundle_ladder(*bundle(), on_cpu=False, via=None) as ladder:
        steps = climb(ladder)
    verdicts = {step.name: step.verdict for step in steps}
    assert verdicts == {"pytorch": "absent", "exported": "absent", "onnx": "reference",
                        "int8": "passed", "engine": "absent"}  # fmt: skip
    assert ladder.tolerance.n == 39
    assert "name the spec" in steps[0].reason


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kit/student_fp32.onnx", "no fp32 network (kit/student_fp32.onnx)"),
        ("kit/reference.npz", "no reference inputs (kit/reference.npz)"),
    ],
)
def test_a_bundle_says_what_it_lacks(bundle, name, says):
    folder, manifest, report = bundle()
    del manifest["files"][name]
    with (
        pytest.raises(KDError) as caught,
        bundle_ladder(folder, manifest, report, on_cpu=True, via=None),
    ):
        pass
    assert caught.value.code == "parity-incomplete"
    assert says in caught.value.message
    assert "SPEC" in caught.value.fix


def test_a_report_without_predictions_says_so(bundle):
    folder, manifest, _ = bundle()
    report = Report("r", "jetson", "passed", 0, (), (), {}, {})
    with (
        pytest.raises(KDError, match="predictions of the test photos"),
        bundle_ladder(folder, manifest, report, on_cpu=False, via=None),
    ):
        pass


def test_the_engine_that_a_board_chose_is_held_against_its_own_precision(bundle, model, faults):
    """The build predicted int8; its kit's engine, merged, is fp16 made from the fp32 file."""
    folder, _, report = bundle()
    onnx.save(to_fp16(model), folder / "kit/student_fp16.onnx")
    with open_place(None, "onnxruntime") as place:
        board = Board(None, "onnxruntime", place.label, facts_of(place.about), "device")
        source, shapes = folder / "kit/student_fp32.onnx", (SHAPE, SHAPE, SHAPE)
        built = engine.build(place, board, source, "fp32", Compile(workspace_mb=64), shapes)
        engine.bring(place, built, folder / "model.engine")
    record = json.loads((folder / "model.engine.json").read_text())
    assert record["profile"] == [SHAPE] * 3
    (folder / "model.engine.json").write_text(json.dumps({**record, "precision": "fp16"}))
    manifest = listed(folder, "int8")
    with bundle_ladder(folder, manifest, report, on_cpu=False, via=None) as ladder:
        assert [rung.name for rung in ladder.rungs[2:]] == ["onnx", "fp16", "engine"]
        assert "--via PLACE" in ladder.rungs[4].absent
    with bundle_ladder(folder, manifest, report, False, (None, "onnxruntime")) as ladder:
        last = ladder.rungs[4]
        assert (last.kind, last.side.precision) == ("fp16", "fp16")
        assert last.model == model  # what it was built from, and not the int8 file that is deployed
        assert (last.side.settings, last.side.profile) == (Compile(workspace_mb=64), [SHAPE] * 3)
        assert [step.verdict for step in climb(ladder)[3:]] == ["passed", "passed"]


@pytest.fixture
def without_kit(bundle, model, tmp_path):
    """`without_kit(deployed)` -> folder, report: a bundle with `parity/`, and 20 photos for it."""

    def make(deployed):
        folder, _, report = bundle()
        shutil.rmtree(folder / "kit")
        (folder / "preprocess.json").write_text(json.dumps(PREPARE.to_json()))
        onnx.save(deployed, folder / "model.onnx")
        arrays = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
        photos = [Photo(str(i), array=array) for i, array in enumerate(arrays)]
        write_carried(folder, tmp_path / "student_fp32.onnx", photos, PREPARE, GATES)
        return folder, report, arrays

    return make


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_bundle_without_a_kit_climbs_on_the_photos_that_it_carries(
    faults, model, images, without_kit, precision
):
    folder, report, arrays = without_kit(faults.in_precision(model, precision, images))
    manifest = listed(folder, precision)
    # the fp32 network is there once
    assert ("parity/student_fp32.onnx" in manifest["files"]) == (precision != "fp32")
    with bundle_ladder(folder, manifest, report, on_cpu=True, via=None) as ladder:
        verdicts = {step.name: step.verdict for step in climb(ladder)}
        assert ladder.source == "the 16 reference inputs of the bundle"
        np.testing.assert_array_equal(ladder.images[0], PREPARE(arrays[0]))
    rounded = {"int8": "passed"} if precision == "int8" else {"rounded": "absent"}
    assert verdicts == {"pytorch": "absent", "exported": "absent", "onnx": "reference", **rounded,
                        "engine": "passed"}  # fmt: skip


def test_what_is_built_to_look_inside_is_the_shipped_engine_with_outputs(
    faults, model, without_kit, tmp_path, monkeypatch
):
    suspect = faults.copied(model)
    conv = [node for node in suspect.graph.node if node.op_type == "Conv"][1]
    assert faults.wrong_padding(suspect, conv)
    folder, report, _ = without_kit(to_fp16(suspect))
    near = NearGpu("11.4.0", tmp_path / "there")
    with near.open() as place:
        asked = Compile(workspace_mb=77, optimization_level=2)
        board, shapes = near.board(load("h100")), (SHAPE, SHAPE, SHAPE)
        built = engine.build(place, board, folder / "model.onnx", "fp16", asked, shapes)
        engine.bring(place, built, folder / "model.engine")
    monkeypatch.setattr(sources, "open_place", near.open)
    manifest = listed(folder, "fp16")
    with bundle_ladder(folder, manifest, report, False, (None, "tensorrt")) as ladder:
        steps = climb(ladder)
        assert [step.verdict for step in steps[2:]] == ["reference", "failed", "passed"]
        found = locate(ladder, ladder.rungs[2], ladder.rungs[4], steps[3])
    assert found.named.node == conv.name
    calls = near.scenes[-1].calls
    builds = sum(call[0] == "build" for call in calls)
    assert 1 < builds <= 5
    assert calls.count(("set_memory_pool_limit", "WORKSPACE", 77 << 20)) == builds
