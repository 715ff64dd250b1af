"""Detection from COCO files to a bundle that runs, on small photos; and what is refused."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from played_kit import merged, run_kit
from small_boxes import CLASSES, MODEL, SPEC, write_data, write_project

from kdcompile import api, targets
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.bundle.box_figures import boxes_png
from kdcompile.bundle.manifest import read_bundle, write_manifest
from kdcompile.bundle.user_files import code_of
from kdcompile.cli import cli
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.core.report import Report
from kdcompile.data.check import check_data
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.data.splits import load_splits
from kdcompile.latency import frame
from kdcompile.latency.frame_sample import packed, shipped_in
from kdcompile.latency.settings import Effort
from kdcompile.passes import suppression
from kdcompile.passes.bundle import write_task
from kdcompile.passes.keys import key_parts
from kdcompile.passes.suppression import compared, unlike
from kdcompile.remote import frame as board_frame
from kdcompile.remote.frame import PARTS, Frames
from kdcompile.tasks.detection.boxes import Found, overlaps
from kdcompile.tasks.detection.task import Detection
from kdcompile.tasks.task import find_task, preprocess_of, task_of

pytestmark = pytest.mark.usefixtures("drawn")


def call(*args, code=0):
    found = CliRunner().invoke(cli, list(map(str, args)))
    assert found.exit_code == code, (found.output, found.exception)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The project, its photos, and the bundle of a build that passed."""
    folder = tmp_path_factory.mktemp("boxes")
    photos = write_project(folder)
    bundle = folder / "dist" / "bundle"
    call("build", folder, "--target", "cpu", "-o", bundle)
    return folder, photos, bundle


def test_the_student_keeps_what_the_teacher_finds(built):
    _, _, bundle = built
    report = json.loads((bundle / "report.json").read_text())
    found = {gate["name"]: gate for gate in report["gates"]}
    assert report["verdict"] == "passed"
    assert found["accuracy"]["observed"].startswith("map ")
    rows = report["details"]["by_class"]
    assert [row["class"] for row in rows] == list(CLASSES)
    numbers = {(m["name"], m["precision"]): m["value"] for m in report["measurements"]}
    assert numbers["teacher map", "fp32"] > 0.5
    each = [row["student_map"] for row in rows]
    own = numbers["student map", report["details"]["choice"]["precision"]]
    assert np.mean(each) == pytest.approx(own)
    curves = report["details"]["curves"]
    assert [len(curve["student"]) for curve in curves] == [101, 101]


def test_the_report_shows_boxes_and_curves(built):
    text = (built[2] / "report.html").read_text()
    for what in ("annotated boxes", "boxes of the teacher", "boxes of the student"):
        assert f": the {what}" in text
    assert "Precision and recall at an overlap of 0.50" in text
    plain = (built[2] / "report.md").read_text()
    for title in ("Average precision by class and size", "Boxes with a score of 0.3 or more"):
        assert f"<h3>{title}</h3>" in text
        assert f"## {title}" in plain
    assert "count" not in json.loads((built[2] / "report.json").read_text())["details"]["task"]


def test_run_and_the_sample_say_the_same_boxes(built):
    folder, photos, bundle = built
    path = folder / "data" / "images" / photos["test"][0].name
    out = folder / "overlays"
    row = json.loads(call("run", bundle, path, "--json", "-o", out).stdout)
    assert row["boxes"]
    with Image.open(row["overlay"]) as overlay:
        assert overlay.size[0] > 64
    line = call("run", bundle, path, "-o", out).stdout
    assert any(name in line for name in CLASSES)
    sample = subprocess.run(
        [sys.executable, bundle / "infer.py", path], capture_output=True, text=True, check=True
    ).stdout
    told = json.loads(sample.split("\t")[1])
    assert [box["class"] for box in told] == [box["class"] for box in row["boxes"]]
    for one, other in zip(told, row["boxes"], strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=0.2)
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
    truth = photos["test"][0].boxes[:, :4].astype(float)
    best = np.array([row["boxes"][0]["box"]])
    assert overlaps(best, truth).max() > 0.5


def test_whole_frames_of_a_detector_are_timed(built, monkeypatch):
    folder, photos, bundle = built
    monkeypatch.setattr(frame, "EFFORT", Effort(processes=1, blocks=4, seconds=0.2))
    path = folder / "data" / "images" / photos["test"][0].name
    found = api.bench(bundle, images=[path], seconds=0.2, processes=1)
    assert found.frame.ms > found.frame.parts["postprocess"] > 0


def resize(root, number, size):
    """Make a test photo of another width and height, with its boxes."""
    path = root / "images" / f"test{number}.png"
    with Image.open(path) as image:
        scale = np.array(size) / image.size
        image.resize(size).save(path)
    content = json.loads((root / "test.json").read_text())
    content["images"][number] |= {"width": size[0], "height": size[1]}
    for one in content["annotations"]:
        if one["image_id"] == number:
            one["bbox"] = (np.array(one["bbox"]) * np.tile(scale, 2)).tolist()
    (root / "test.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def on_board(built, tmp_path_factory):
    """A folder with a bundle for a board, its test pack, and what the kit wrote of both.

    Of its test photos one is smaller than the input, and one is larger.
    """
    folder = tmp_path_factory.mktemp("board") / "own"
    shutil.copytree(built[0], folder, ignore=shutil.ignore_patterns("dist", "overlays"))
    resize(folder / "data", 0, (40, 64))
    resize(folder / "data", 1, (150, 96))
    run_kit(folder, "--precision", "fp32")
    return folder


def test_home_judges_a_boards_outputs_by_the_boxes_of_the_pack(on_board):
    gates = merged(on_board, "--test-pack", "pack")
    assert gates["accuracy@device"]["verdict"] == "passed"
    numbers = {
        (m["name"], m["evidence"], m["precision"]): m["value"]
        for m in gates["report"]["measurements"]
    }
    for metric in ("map", "map50"):
        key = f"student {metric}"
        assert numbers[key, "device", "fp32"] == pytest.approx(numbers[key, "host", "fp32"])


def test_a_kit_times_whole_frames_of_a_detector(on_board, monkeypatch):
    monkeypatch.setattr(board_frame, "BLOCK_MS", 1.0)
    monkeypatch.setattr(board_frame, "WARMUP_S", 0.0)
    record = on_board / "out" / "device.json"
    photos = [str(path) for path in sorted((on_board / "data" / "images").glob("test*"))[:2]]
    found = board_frame.of_kit(str(on_board / "kit" / "kit"), str(record), photos, blocks=6)
    assert set(found["parts"]) == set(board_frame.PARTS)
    assert json.loads(record.read_text())["frame"]["images"] == 2


@pytest.fixture(scope="module")
def foreign(built, tmp_path_factory):
    """The bundle of a board, with the boxes suppressed in a network beside it."""
    bundle = tmp_path_factory.mktemp("foreign") / "bundle"
    call("build", built[0], "--target", "jetson", "--set", 'export.nms="in-graph"', "-o", bundle)
    return bundle


def test_the_network_beside_it_suppresses_boxes_as_the_task_does(built, foreign):
    bundle = foreign
    about = json.loads((bundle / "nms" / "nms.json").read_text())
    assert about["images"] == 8
    assert about["boxes"] >= 8
    assert about["apart"] == 0
    assert 0 < about["predicted_ms"] < 5
    spec = load_spec(built[0] / "kdcompile.toml")
    task, prepare = task_of(spec), preprocess_of(spec)
    for photo in load_splits(spec.data, spec.folder).test:
        image, frame = prepare.view(photo)
        inside = open_session(bundle / "nms" / "model.onnx")(image)
        own = task.found(open_session(bundle / "model.onnx")(image), frame)
        assert unlike(own, Detection(task.head, "boxes", count=2).found(inside, frame)) == 0
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "0 of" in card
    assert "Predicted for jetson" in card


def test_a_suppression_that_differs_is_refused(built, foreign, monkeypatch):
    """By more than a hundredth of the boxes."""
    spec = load_spec(built[0] / "kdcompile.toml")
    photos = load_splits(spec.data, spec.folder).val
    files = foreign / "model.onnx", foreign / "nms" / "model.onnx"
    given = task_of(spec), files, photos, preprocess_of(spec)

    def with_apart(most):
        apart = iter([most] + [0] * (len(photos) - 1))
        monkeypatch.setattr(suppression, "unlike", lambda own, other: next(apart))
        return compared(*given)

    allowed = with_apart(0)["boxes"] // 100
    assert with_apart(allowed)["apart"] == allowed
    with pytest.raises(KDError, match="export-nms") as caught:
        with_apart(allowed + 1)
    assert 'export.nms = "none"' in str(caught.value.fix)


def test_only_the_compile_stage_is_done_again_for_it(project, built):
    shutil.copyfile(built[0] / "teacher.safetensors", project / "teacher.safetensors")
    keys = []
    for sets in ([], ['export.nms="in-graph"']):
        spec, hasher = load_spec(project / "kdcompile.toml", sets), Hasher(project / "hashes.json")
        keys.append(key_parts(spec, targets.load("jetson"), hasher))
    assert [stage for stage in keys[0] if keys[0][stage] != keys[1][stage]] == ["compile"]


def test_how_many_boxes_are_unlike():
    own = Found(np.array([[0.0, 0, 9, 9], [0, 0, 9, 9]]), np.array([0.9, 0.8]), np.array([0, 1]))
    moved = own.boxes + np.array([[0.2, 0, 0, 0], [0, 0, 0, 0]])
    assert unlike(own, own) == 0
    assert unlike(own, own.at(np.array([1, 0]))) == 0
    assert unlike(own, own.at(np.array([0]))) == unlike(own.at(np.array([0])), own) == 1
    assert unlike(own, Found(own.boxes + 0.05, own.scores + 5e-4, own.classes)) == 0
    assert unlike(own, Found(moved, own.scores, own.classes)) == 1
    assert unlike(own, Found(own.boxes, own.scores + 2e-3, own.classes)) == 2
    assert unlike(own, Found(own.boxes, own.scores, 1 - own.classes)) == 2


@pytest.mark.parametrize(
    ("sets", "code", "message"),
    [
        (['task.decode="boxes"'], "task-decode", "boxes takes"),
        (["task.head.overlap=1.0"], "export-nms", "its boxes are final"),
        (["export.shape={min=[1,3,32,32], opt=[1,3,64,64], max=[1,3,64,64]}"], "spec-invalid",
         "one fixed shape"),
        (['task.kind="segmentation"'], "spec-invalid", "needs task.kind"),
    ],
)  # fmt: skip
def test_a_suppression_that_cannot_be_is_refused_by_plan(project, built, sets, code, message):
    shutil.copyfile(built[0] / "teacher.safetensors", project / "teacher.safetensors")
    words = [part for one in [*sets, 'export.nms="in-graph"'] for part in ("--set", one)]
    found = CliRunner().invoke(cli, ["plan", str(project), *words])
    assert found.exit_code == 1
    told = f"{found.output} {found.exception} {getattr(found.exception, 'code', '')}"
    assert message in told


@pytest.fixture
def project(tmp_path):
    """Data, spec and model, without a build."""
    write_data(tmp_path / "data", {"train": 2, "val": 1, "test": 1})
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    return tmp_path


def test_a_box_beside_a_photo_that_is_smaller_than_its_file_says_is_refused(project):
    Image.new("RGB", (40, 40), "red").save(project / "data" / "images" / "val0.png")
    path = project / "data" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [30, 30, 20, 20]
    path.write_text(json.dumps(content))
    spec = load_spec(project / "kdcompile.toml")
    with pytest.raises(KDError) as caught:
        check_data(spec, project / "store")
    assert caught.value.code == "annotation-outside"
    assert "upright image" in str(caught.value.fix)


PLANE = Frame((64, 64), (64, 64), (64, 64))


def maps(classes: int = 2) -> np.ndarray:
    found = np.full((1, classes + 4, 16, 16), -6.0, np.float32)
    found[0, 0, 4, 4], found[0, classes:, 4, 4] = 3.0, np.log(2)
    return found


def test_a_box_of_a_class_that_is_no_output_is_refused():
    boxes = np.array([[1, 1, 9, 9, 2]], np.float32)
    photo = Photo("a", array=np.zeros((64, 64, 3), np.uint8), boxes=boxes)
    task = find_task("detection")
    with pytest.raises(KDError) as caught:
        task.record(maps(), photo, PLANE)
    assert caught.value.code == "labels-invalid"
    assert "an output for each" in str(caught.value.fix)
    assert task.check_labels([], task.outputs_of((1, 6, 16, 16)), ("a", "b", "c")) is not None
    assert task.check_labels([], task.outputs_of((1, 6, 16, 16)), ("a", "b")) is None


def test_what_lies_in_the_padding_is_not_found_and_boxes_are_in_the_photos_pixels():
    task = find_task("detection")
    assert task.answer(maps(), PLANE)[:, :4].round(3).tolist() == [[10, 10, 26, 26]]
    scaled = Frame((128, 128), (64, 64), (64, 64))
    assert task.answer(maps(), scaled)[:, :4].round(3).tolist() == [[20, 20, 52, 52]]
    narrow = Frame((64, 17), (64, 17), (64, 64))
    assert len(task.answer(maps(), narrow)) == 0
    assert len(task.answer(maps(), Frame((64, 19), (64, 19), (64, 64)))) == 1


def test_the_error_of_an_image_is_that_of_its_sure_boxes():
    task = find_task("detection")
    boxes = np.array([[10, 10, 26, 26, 0], [40, 40, 60, 60, 1]], np.float32)

    def error(given):
        photo = Photo("a", array=np.zeros((64, 64, 3), np.uint8), boxes=given)
        return task.record(maps(), photo, PLANE)[0]

    assert error(boxes[:1]) == 0
    assert error(boxes) == pytest.approx(1 / 3)  # one right, one missed
    assert error(boxes[1:]) == 1
    assert error(boxes[:0]) == 1


def test_a_decode_of_the_users_is_called_and_checked(project):
    (project / "own.py").write_text(
        "def decode(outputs, plane):\n"
        "    return [[0, 0, plane[1] / 2, plane[0]]], [outputs['boxes'].max()], [1]\n"
        "def broken(outputs, plane):\n    return [1 / 0], [], []\n"
    )
    sets = ['task.decode="own.py:decode"']
    task = task_of(load_spec(project / "kdcompile.toml", sets))
    found = task.answer(np.full((1, 3), 0.5, np.float32), PLANE)
    assert found.tolist() == [[0, 0, 32, 64, 0.5, 1]]
    with pytest.raises(KDError) as caught:
        task.answer(np.full((1, 3), 5, np.float32), PLANE)
    assert caught.value.code == "task-decode"
    broken = task_of(load_spec(project / "kdcompile.toml", ['task.decode="own.py:broken"']))
    with pytest.raises(KDError) as caught:
        broken.answer(maps(), PLANE)
    assert caught.value.code == "task-decode"
    assert "docs/tasks.md" in str(caught.value.fix)


def test_who_does_not_tell_the_classes_is_told_them(project):
    (project / "own.py").write_text(
        "def decode(outputs, plane):\n    return [[32, 0, 64, 64]], [0.9], [1]\n"
    )
    photo = Photo(
        "a", array=np.zeros((64, 64, 3), np.uint8),
        boxes=np.array([[32, 0, 64, 64, 1]], np.float32),
    )  # fmt: skip
    output, sets = np.zeros((1, 3), np.float32), ['task.decode="own.py:decode"']
    with pytest.raises(KDError) as caught:
        task_of(load_spec(project / "kdcompile.toml", sets)).record(output, photo, PLANE)
    assert caught.value.code == "task-classes"
    named = [*sets, 'data.classes=["disc", "square"]']
    task = task_of(load_spec(project / "kdcompile.toml", named))
    row = task.record(output, photo, PLANE)
    assert row[0] == 0
    assert task.scores([row.tolist()], [0.0])["map50"] == 1


def test_a_head_that_no_decoder_knows_stops_the_plan(project):
    whole = "return self.head(self.body(x))"
    (project / "model.py").write_text(MODEL.replace(whole, f"{whole}.mean((2, 3))"))
    import torch
    from safetensors.torch import save_file

    from kdcompile.core.user_code import load_factory

    torch.manual_seed(0)
    network = load_factory("model.py:build", project)()
    save_file(network.state_dict(), project / "teacher.safetensors")
    found = call("plan", project, code=1)
    assert "no decoder is known" in str(found.exception)
    assert "task.decode" in str(found.exception)


@pytest.mark.parametrize(
    ("named", "message", "fix"),
    [("yolov9", "no decoder 'yolov9'", "use one of centre"), ("yolov8", "yolov8 takes", "leave")],
)
def test_a_decoder_that_is_named_wrongly_is_the_specs_fault(project, named, message, fix):
    task = task_of(load_spec(project / "kdcompile.toml", [f'task.decode="{named}"']))
    with pytest.raises(KDError) as caught:
        task.check_output((1, 6, 8, 8))
    assert caught.value.code == "task-decode"
    assert message in caught.value.message
    assert caught.value.fix.startswith(fix)


def test_settings_of_a_bundle_make_the_same_task(project):
    sets = ["task.head.threshold=0.99", "task.head.overlap=0.7"]
    task = task_of(load_spec(project / "kdcompile.toml", sets))
    again = find_task("detection").with_settings(json.loads(json.dumps(task.settings())))
    assert again.head == task.head
    assert len(again.answer(maps(), PLANE)) == 0


def test_boxes_without_names_and_none_at_all_are_drawn():
    pixels = np.zeros((20, 30, 3), np.uint8)
    assert boxes_png(pixels, np.zeros((0, 6), np.float32), "none")[:4] == b"\x89PNG"
    one = np.array([[1, 1, 9, 9, 0.5, 300]], np.float32)
    assert boxes_png(pixels[..., :1], one, "one")[:4] == b"\x89PNG"


def test_preprocessing_of_boxes_pads_with_the_mean_colour(project):
    from kdcompile.tasks.task import preprocess_of

    found = preprocess_of(load_spec(project / "kdcompile.toml"))
    assert isinstance(found, Preprocess)
    assert found.padding == "mean"


OWN = '''"""A decode of the user's: the cell of the largest logit, with a fixed size."""

import near
import numpy as np


def decode(outputs, plane):
    maps = outputs["boxes"][0]
    kind, row, column = np.unravel_index(maps[:2].argmax(), maps[:2].shape)
    x, y = (column + 0.5) * plane[1] / maps.shape[2], (row + 0.5) * plane[0] / maps.shape[1]
    return [[x - near.HALF, y - near.HALF, x + near.HALF, y + near.HALF]], [0.75], [kind]
'''


@pytest.fixture(scope="module")
def carrying(built, tmp_path_factory):
    """The bundle of `built` with a decode of the user's, as the bundle stage writes it."""
    place = tmp_path_factory.mktemp("carrying")
    folder, bundle = place / "spec", place / "bundle"
    folder.mkdir()
    (folder / "heads").mkdir()
    (folder / "heads" / "own.py").write_text(OWN)
    (folder / "near.py").write_text("HALF = 6\n")
    (folder / "train_it.py").write_text("import own\n")
    shutil.copyfile(built[0] / "kdcompile.toml", folder / "kdcompile.toml")
    shutil.copytree(built[2], bundle)
    spec = load_spec(folder / "kdcompile.toml", ['task.decode="heads/own.py:decode"'])
    write_task(bundle, spec)
    about = json.loads((bundle / "manifest.json").read_text())
    report = Report.from_json(json.loads((bundle / "report.json").read_text()))
    backend = {"backend": about["backend"]["name"], "backend_version": about["backend"]["version"]}
    write_manifest(bundle, report, "detection", {"precision": about["precision"], **backend})
    return bundle, built[0] / "data" / "images" / built[1]["test"][0].name


def test_the_card_says_why_there_is_no_deepstream(built):
    assert not (built[2] / "deepstream").exists()
    card = (built[2] / "MODEL_CARD.md").read_text()
    assert "There is no `deepstream/`: the parser of boxes" in card


def test_a_bundle_carries_a_decode_and_what_it_imports(carrying):
    files = read_bundle(carrying[0]).manifest["files"]
    carried = {name for name in files if name.startswith("code/")}
    assert carried == {"code/heads/own.py", "code/near.py"}


def test_a_decode_in_a_bundle_runs_with_consent_alone(carrying, tmp_path):
    bundle, photo = carrying
    with pytest.raises(KDError) as caught:
        list(api.run(bundle, [photo], out=tmp_path))
    assert caught.value.code == "bundle-code"
    assert "--allow-code" in str(caught.value.fix)
    assert not list(tmp_path.iterdir())
    ((_, row),) = api.run(bundle, [photo], out=tmp_path, allow_code=True)
    (box,) = row["boxes"]
    assert box["score"] == 0.75
    assert box["box"][2] - box["box"][0] == pytest.approx(12)
    call("verify", bundle, "--json")  # compares outputs, and needs no code of the bundle
    sample = subprocess.run(
        [sys.executable, bundle / "infer.py", photo], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(sample.split("\t")[1]) == [box]


def test_a_changed_decode_is_never_run(carrying, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(carrying[0], bundle)
    mark = tmp_path / "ran"
    (bundle / "code" / "near.py").write_text(f"open({str(mark)!r}, 'w')\nHALF = 6\n")
    with pytest.raises(KDError) as caught:
        list(api.run(bundle, [carrying[1]], out=tmp_path, allow_code=True))
    assert caught.value.code == "bundle-corrupt"
    command = [sys.executable, bundle / "infer.py", carrying[1]]
    sample = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sample.returncode == 1
    assert "near.py is not the file of the manifest" in sample.stderr
    assert not mark.exists()


def test_a_frame_with_a_decode_is_timed_with_consent_alone(carrying, tmp_path):
    bundle, photo = carrying
    with pytest.raises(KDError) as caught:
        shipped_in(read_bundle(bundle))
    assert caught.value.code == "bundle-code"
    assert "--allow-code" in str(caught.value.fix)
    shipped = shipped_in(read_bundle(bundle), allow_code=True)
    with zipfile.ZipFile(packed(tmp_path, shipped, [(photo.name, photo.read_bytes())])) as sample:
        assert {"code/heads/own.py", "code/near.py"} <= set(sample.namelist())
        sample.extractall(tmp_path / "there")
    photos = [str(tmp_path / "there" / "photos" / "000.png")]
    times = Frames(str(tmp_path / "there"), photos, str(tmp_path)).once()
    assert len(times) == len(PARTS)
    assert min(times) > 0


def test_bench_takes_the_consent(carrying, tmp_path, monkeypatch):
    bundle, photo = carrying
    monkeypatch.setattr(frame, "EFFORT", Effort(processes=1, blocks=4, seconds=0.5))
    with pytest.raises(KDError) as caught:
        api.bench(bundle, images=[photo])
    assert caught.value.code == "bundle-code"
    found = api.bench(bundle, images=[photo], allow_code=True, seconds=0.5, processes=1)
    assert found.frame.parts["postprocess"] > 0


def test_the_frame_of_a_kit_has_the_decode_that_it_lists(carrying, tmp_path, monkeypatch):
    """As `build_engine.py --images` does it, up to the network itself."""
    bundle, photo = carrying
    code = code_of("heads/own.py:decode", bundle.parent / "spec")
    assert set(code) == {"code/heads/own.py", "code/near.py"}
    assert code_of("centre", bundle.parent / "spec") == {}
    kit, seen = tmp_path / "kit", {}
    for name, path in code.items():
        (kit / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kit / name)
    for name in ("preprocess.json", "task.json", "infer.py"):
        shutil.copyfile(bundle / name, kit / name)
    for name in ("agent.pyz", "model.engine", "model.engine.json"):
        (kit / name).write_bytes(b"{}")
    (kit / "kit.json").write_text(json.dumps({"task": "detection", "files": dict.fromkeys(code)}))
    record = kit / "device.json"
    record.write_text(json.dumps({"engine": "model.engine", "chosen": "fp32"}))

    class Watched(board_frame.Frames):
        def __init__(self, folder, photos, scratch):
            seen.update(json.loads(Path(folder, "manifest.json").read_text())["files"])
            assert all(Path(folder, name).is_file() for name in seen)

    monkeypatch.setattr(board_frame, "Frames", Watched)
    monkeypatch.setattr(board_frame, "in_blocks", lambda frames, blocks: {"blocks": [1.0]})
    board_frame.of_kit(str(kit), str(record), [str(photo)])
    assert set(code) <= set(seen)
    assert json.loads(record.read_text())["frame"]["precision"] == "fp32"
