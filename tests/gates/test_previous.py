"""The student beside the network of an earlier bundle: same photos, both questions, refusals."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from near_place import NearGpu
from onnx_graphs import chain
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.backends import engine
from kdcompile.bundle.manifest import read_bundle, write_manifest
from kdcompile.core.errors import KDError
from kdcompile.core.measurement import Settings
from kdcompile.core.report import Report
from kdcompile.gates import measure
from kdcompile.gates.context import Earlier
from kdcompile.gates.previous import PreviousGate, previous
from kdcompile.gates.reference_bundle import open_earlier
from kdcompile.gates.registry import find_gate
from kdcompile.passes import compile as compile_stage
from kdcompile.tasks.task import find_task

EARLIER = Earlier("crowd for cpu", "0" * 64, "int8", "its ONNX file")
CPU = "cpu"
LOOSE = ("gates.previous.margin=900%", "gates.previous.max_increase=900%")


def judged(make_context, gate, before, after, **more):
    """The gate's result for a student after, beside an earlier network before."""
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 500, 120)
    errors = rng.normal(0, 10, 120)
    context = make_context(
        "counting", true, true + errors, true + after * errors, earlier=EARLIER,
        previous=true + before * errors, **more,
    )  # fmt: skip
    return previous(gate, context)


def test_a_student_as_good_as_the_earlier_one_passes_whatever_the_teacher_does(make_context):
    result = judged(make_context, PreviousGate(), 3.0, 3.0)
    assert result.verdict == "passed"
    assert "0 of 120 images got worse" in result.observed
    assert "crowd for cpu was its ONNX file" in result.reason
    assert [m.name for m in result.measurements] == [
        "mae increase", "photos worse than the earlier bundle's",
    ]  # fmt: skip


def test_a_student_worse_than_the_earlier_one_fails(make_context):
    result = judged(make_context, PreviousGate(), 1.0, 2.0)
    assert result.verdict == "failed"
    assert result.threshold.startswith("mae at most 5% over the earlier bundle's")


def test_a_metric_of_density_maps_is_skipped_where_there_are_none(make_context):
    result = judged(make_context, PreviousGate(metric="game1"), 1.0, 1.0)
    assert (result.verdict, result.observed) == ("skipped", "no density maps")


@pytest.mark.parametrize(
    ("most", "verdict"), [(None, "passed"), ("60%", "passed"), ("30%", "inconclusive"),
                          ("10%", "failed")],
)  # fmt: skip
def test_photos_that_got_worse_decide_where_a_limit_is_given(make_context, most, verdict):
    """The same mean, other photos: a quarter is much worse."""
    true = np.full(120, 100.0)
    before, after = np.full(120, 10.0), np.full(120, 5.0)
    after[:30] = 25.0
    context = make_context(
        "counting", true, true, true + after, earlier=EARLIER, previous=true + before
    )
    gate = PreviousGate(max_flips=most, max_increase="50%", margin="50%")
    result = previous(gate, context)
    assert result.verdict == verdict
    assert "30 of 120 images got worse (25.0%" in result.observed


def test_without_an_earlier_bundle_the_gate_is_skipped_and_never_passed(make_context):
    result = previous(PreviousGate(), make_context("counting", [1.0], [1.0], [1.0]))
    assert result.verdict == "skipped"
    assert "--baseline BUNDLE" in result.reason


def test_the_threshold_names_the_flips_where_the_spec_limits_them():
    text, task = find_gate("previous").threshold, find_task("counting")
    assert text(PreviousGate(max_flips="60%"), task).endswith(
        "; at most 60% of the images worse, at 95 %"
    )
    assert "images" not in text(PreviousGate(), task)


def test_the_manifest_of_the_bundle_is_a_file_of_the_spec(tmp_path):
    assert PreviousGate().files(tmp_path) == {}
    found = PreviousGate(bundle="old").files(tmp_path)
    assert found == {"bundle": tmp_path / "old/manifest.json"}


def test_classes_are_compared_by_their_rate(make_context):
    true = np.arange(300) % 4.0
    student = np.where(np.arange(300) < 30, true + 1, true)
    context = make_context("classification", true, true, student, earlier=EARLIER, previous=true)
    result = previous(PreviousGate(max_flips="15%"), context)
    assert result.verdict == "failed"
    assert "under the limit of 95.00%" in result.reason


@pytest.fixture(scope="module", autouse=True)
def patch():
    """Few timings and no compile check beside."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(compile_stage, "compile_check", lambda *values: [])
        m.setattr(engine, "pace", lambda *values, **named: engine.Pace(6, 2, 1))
        m.setattr(measure, "TIMING", Settings(seconds=0.05))
        yield m


def built(root, target, board=None):
    """A small build, verified."""
    root.mkdir(exist_ok=True)
    build = SmallBuild(root, student=chain(3))
    build.run("calibrate", target)
    build.run("compile", target, board)
    build.run("verify", target, board)
    return build


def as_bundle(build, folder):
    """What a comparison reads of the build's bundle, as a bundle."""
    folder.mkdir()
    for stage, names in {
        "export": ["preprocess.json"],
        "compile": ["model.onnx", "model.engine", "model.engine.json"],
        "verify": ["report.json"],
    }.items():
        for name in names:
            if name in build.made[stage].files:
                shutil.copyfile(build.made[stage].file(name), folder / name)
    report = Report.from_json(build.report())
    write_manifest(folder, report, "counting", build.made["compile"].json("choice.json"))
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A build for this CPU."""
    return built(tmp_path_factory.mktemp("released"), targets.load(CPU))


@pytest.fixture
def bundle(released, tmp_path):
    """Its bundle, to change."""
    return as_bundle(released, tmp_path / "old")


def again(released, folder, sets=()):
    """The same build, verified beside a bundle; its gate and its details."""
    build = released.copy()
    build.run("verify", targets.load(CPU), sets=(f"gates.previous.bundle={folder}", *LOOSE, *sets))
    report = build.report()
    (gate,) = [g for g in report["gates"] if g["name"] == "previous"]
    return gate, report["details"]


def test_the_network_of_the_bundle_runs_on_the_same_photos(released, bundle):
    gate, details = again(released, bundle)
    assert gate["verdict"] == "passed"
    assert "0 of 9 images got worse" in gate["observed"]
    assert all(row["previous"] == row["student"] for row in details["predictions"])
    assert details["previous"]["title"] == f"{released.root.name} for cpu"
    assert len(details["previous"]["sha256"]) == 64


def test_maps_of_the_earlier_network_are_compared_too(released, bundle):
    gate, _ = again(released, bundle, ["gates.previous.metric=game3"])
    assert gate["observed"].startswith("game3 ")
    assert gate["verdict"] == "passed"


def changed(folder, edit):
    """The bundle with another report or manifest, whole again."""
    found = read_bundle(folder)
    report = found.report()
    details = json.loads(json.dumps(report.to_json()["details"]))
    task, classes = edit(details) or (found.manifest["task"], None)
    if classes is not None:
        details["task"]["classes"] = classes
    report = replace(report, details=details)
    (folder / "report.json").write_text(json.dumps(report.to_json()))
    choice = {"precision": "int8", "backend": "onnxruntime", "backend_version": "1"}
    write_manifest(folder, report, task, choice)
    return folder


@pytest.mark.parametrize(
    ("edit", "code", "text"),
    [
        (
            lambda d: d["data"]["test"].update(photos_sha256="f" * 64),
            "baseline-test-set",
            "hash ffffffff",
        ),
        (lambda d: d.pop("data") and None, "baseline-test-set", "does not say"),
        (lambda d: ("regression", None), "baseline-task", "of regression, this build of counting"),
        (lambda d: ("counting", ["a"]), "baseline-classes", "the classes ['a']"),
    ],
)
def test_a_bundle_that_cannot_be_compared_is_refused(released, bundle, edit, code, text):
    with pytest.raises(KDError) as caught:
        again(released, changed(bundle, edit))
    assert caught.value.code == code
    assert text in caught.value.message
    assert caught.value.fix


def test_a_bundle_that_was_changed_or_is_none_is_refused(released, bundle, tmp_path):
    task = find_task("counting")
    with pytest.raises(KDError) as caught:
        open_earlier(tmp_path / "nowhere", task, None, "")
    assert caught.value.code == "bundle-missing"
    with (bundle / "model.onnx").open("ab") as stream:
        stream.write(b"0")
    with pytest.raises(KDError) as caught:
        again(released, bundle)
    assert caught.value.code == "bundle-corrupt"


def test_at_a_board_its_engine_runs_and_one_that_it_refuses_is_told(tmp_path, patch):
    target, take = targets.load("h100").with_backend("8.6.1"), engine.take

    def refuse(place, path, network):
        if network == "previous":
            raise KDError("engine-mismatch", "built by TensorRT 8.5")
        return take(place, path, network)

    with NearGpu("8.6.1", tmp_path / "there").installed(patch) as place:
        board = place.board(target)
        build = built(tmp_path / "a", target, board)
        sets = (f"gates.previous.bundle={as_bundle(build, tmp_path / 'old')}", *LOOSE)
        gates = []
        for taking in (take, refuse):
            with patch.context() as m:
                m.setattr(engine, "take", taking)
                build.run("verify", target, board, sets=sets)
            gates += [g for g in build.report()["gates"] if g["name"] == "previous"]
    assert {(g["verdict"], g["evidence"]) for g in gates} == {("passed", "device")}
    assert "was its engine at here" in gates[0]["reason"]
    assert "was its ONNX file by onnxruntime" in gates[1]["reason"]
    assert "its engine does not load at here: built by TensorRT 8.5" in gates[1]["reason"]
