"""The example of a task in one file: key points, from made-up photos to a bundle that runs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import kdcompile
from PIL import Image

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.core.escape import plain
from kdcompile.data.augment import CropSampler
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.data.targets import photos_of
from kdcompile.examples.keypoints import kites
from kdcompile.examples.keypoints.keypoints import MIRRORED, KeyPoints, KitePoints, Maps

pytestmark = pytest.mark.usefixtures("drawn")

QUICK = (
    'data.train="train:24"', 'data.val="val:8"', 'data.test="test:24"', "distill.steps=6",
    "distill.batch=8", "distill.lr=1e-4", "quantize.images=8", 'quantize.precision="fp32"',
    "gates.accuracy.required=false", 'target="cpu"',
)  # fmt: skip
PLANE = Frame((64, 64), (64, 64), (64, 64))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the example, its bundle and a test photo of it."""
    folder = tmp_path_factory.mktemp("keypoints")
    kdcompile(folder, "init", "spec", "--example", "keypoints")
    sets = [word for value in QUICK for word in ("--set", value)]
    kdcompile(folder, "build", "spec", *sets, "-o", "bundle")
    Image.fromarray(kites.photos(folder, "test:1")[0].array).save(folder / "kite.png")
    return folder


def test_the_report_speaks_of_points_and_of_nothing_else(built):
    report = json.loads((built / "bundle" / "report.json").read_text())
    task = report["details"]["task"]
    assert (task["name"], task["metric"]) == ("keypoints", "pck")
    assert [row["class"] for row in report["details"]["by_class"]] == list(kites.NAMES)
    numbers = {(m["name"], m["precision"]): m["value"] for m in report["measurements"]}
    assert numbers["teacher pck", "fp32"] > 0.97
    page = (built / "bundle" / "report.html").read_text()
    for what in ("annotated points", "points of the teacher", "points of the student"):
        assert f": the {what}" in page
    assert "mean distance from the points" in page
    for strange in ("density", "crowd", "photo.npz", "sample.npz"):
        assert strange not in page


def test_run_gives_outputs_and_with_consent_points(built):
    line = kdcompile(built, "run", "bundle", "kite.png").stdout
    assert "maps [1, 4, 16, 16]" in line
    found = json.loads(
        kdcompile(built, "run", "bundle", "kite.png", "--allow-code", "--json").stdout
    )
    assert [one["class"] for one in found["points"]] == list(kites.NAMES)
    with np.load(built / "overlays" / "kite_outputs.npz") as arrays:
        own = KeyPoints().answer(arrays["maps"], PLANE)
    assert [one["point"] for one in found["points"]] == pytest.approx(own[:, :2], abs=0.06)
    with Image.open(built / found["overlay"]) as overlay:
        assert overlay.size[0] > 64
    assert "left wing" in kdcompile(built, "run", "bundle", "kite.png", "--allow-code").stdout


def test_the_python_sample_writes_the_same_outputs(built):
    kdcompile(built, "run", "bundle", "kite.png")
    command = [sys.executable, str(built / "bundle" / "infer.py"), "kite.png"]
    told = subprocess.run(command, cwd=built, capture_output=True, text=True, check=True).stdout
    assert "maps [1, 4, 16, 16]" in told
    maps = [np.load(place / "kite_outputs.npz")["maps"] for place in (built, built / "overlays")]
    assert maps[0] == pytest.approx(maps[1], abs=1e-5)


def test_the_bundle_carries_the_task_and_a_changed_one_is_refused(built, tmp_path):
    source = built / "bundle" / "code" / "keypoints.py"
    assert source.read_bytes() == (built / "spec" / "keypoints.py").read_bytes()
    assert not (source.parent / "kites.py").exists()
    whole = source.read_bytes()
    source.write_bytes(whole + b"\n")
    said = kdcompile(built, "run", "bundle", "kite.png", "--allow-code", code=1).stderr
    source.write_bytes(whole)
    assert "error[bundle-corrupt]" in said
    assert plain("keypoints.py") in said


def maps_of(points, side=16):
    """Logits whose Gaussians lie at points [K, 2] of a photo of 64."""
    y, x = np.mgrid[:side, :side] + 0.5
    apart = [(x - px / 4) ** 2 + (y - py / 4) ** 2 for px, py in points]
    return -np.array(apart, np.float32)[None] / 2


def test_gaussians_at_the_points_are_right_and_a_shift_is_not():
    task, (photo,) = KeyPoints(), kites.photos(None, "val:1")
    error, *record = task.record(maps_of(photo.points), photo, PLANE)
    assert error < 0.01
    assert record == [1] * 8
    off = photo.points + np.array([[0, 0], [8, 0], [0, 0], [0, 8]])
    error, *record = task.record(maps_of(off), photo, PLANE)
    assert record == [1, 0, 1, 0, 1, 1, 1, 1]
    assert error == pytest.approx(4 / np.hypot(64, 64), rel=0.1)
    errors = task.errors(np.array([[0, *[1] * 8], [error, *record]]), [0, 0])
    assert task.metric(errors) == 0.75
    each = [task.metric_of(task.metric, a)(errors[i]) for a, i in task.parts_of([], errors, None)]
    assert each == [1, 0.5, 1, 0.5]


def test_a_photo_that_is_scaled_and_padded_is_judged_in_its_own_pixels():
    task, seen = KeyPoints(), np.array([[12.0, 8], [20, 8], [12, 24], [28, 24]], np.float32)
    photo = Photo("a", seen * 4, array=np.zeros((128, 160, 3), np.uint8))
    frame = Frame((128, 160), (32, 40), (64, 64))
    maps = maps_of(seen)
    maps[0, :, 12, 12] = 50.0  # in the padding
    error, *record = task.record(maps, photo, frame)
    assert (error < 0.01, record) == (True, [1] * 8)


def test_other_points_than_maps_are_refused_with_the_fix():
    photo = Photo("a", np.ones((3, 2), np.float32), array=np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(KDError, match="3 points, the network 4 maps") as caught:
        KeyPoints().record(np.zeros((1, 4, 16, 16), np.float32), photo, PLANE)
    assert "every key point" in str(caught.value.fix)
    assert KeyPoints().check_output((1, 4)) is not None
    assert KeyPoints().check_labels([], 4, ["one"]) is not None


def test_a_mirror_moves_the_wings_and_the_loss_knows_the_right_maps():
    photos = kites.photos(None, "train:8")
    options = Distill(crop=64, batch=8, scale=(1.0, 1.0), colour=0.0, flip=True)
    prepare = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (64, 64), (64, 64))
    targets = KitePoints(photos, torch.device("cpu"))
    sampler = CropSampler(photos, prepare, options, targets, 0, torch.device("cpu"))
    batch, mirrored = sampler.batch(0), 0
    for number, points in zip(photos_of(sampler.draw(0)).tolist(), batch.target, strict=True):
        own = torch.from_numpy(photos[number].points)
        other = torch.stack([64 - own[:, 0], own[:, 1]], 1)[list(MIRRORED)]
        is_mirrored = bool((points[:, :2] - other).abs().max() < 0.01)
        assert is_mirrored or (points[:, :2] - own).abs().max() < 0.01
        mirrored += is_mirrored
    assert 0 < mirrored < 8
    right = torch.from_numpy(np.concatenate([maps_of(p[:, :2].numpy()) for p in batch.target]))
    objective = Maps(options, batch.target)
    good, bad = (objective.terms(m, batch.target, right) for m in (right, right.roll(1, 1)))
    assert good["soft"] == pytest.approx(0, abs=1e-5)
    assert bad["soft"] > 1
    assert bad["hard"] > good["hard"] + 1
