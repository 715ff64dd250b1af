"""`kdcompile init --from`: a spec that fits a network and data, on which `plan` is clean."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from kdcompile.cli import cli
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.data.splits import load_splits

MODEL = """
from torch import nn


class Fixed(nn.Module):
    '''Takes images of {side} x {side} alone.'''

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d({channels}, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * ({side} // 2) ** 2, {outputs}),
        )

    def forward(self, x):
        return self.body(x)


def dense():
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 1, 1))


def build():
    return {made}
"""
CLASSES = ("cat", "cow", "dog")
RANDOM = np.random.default_rng(0)


def _image(path, side=24, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side, 3) if channels == 3 else (side, side)
    Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8)).save(path)


def _network(folder, outputs=3, side=24, channels=3, made="Fixed()"):
    folder.mkdir(exist_ok=True)
    code = MODEL.format(outputs=outputs, side=side, channels=channels, made=made)
    (folder / "model.py").write_text(code)
    names: dict = {}
    exec(code, names)
    torch.manual_seed(0)
    torch.save(names["build"]().state_dict(), folder / "w.pt")


def _init(tmp_path, *more):
    args = ["init", str(tmp_path / "spec"), "--from", "model.py:build"]
    found = CliRunner().invoke(cli, [*args, "--data", str(tmp_path / "data"), *more])
    if isinstance(found.exception, KDError):
        raise found.exception
    assert found.exit_code == 0, found.output
    spec = load_spec(tmp_path / "spec" / "kdcompile.toml")
    return spec, load_splits(spec.data, spec.folder)


def _planned(spec):
    """The plan, which refuses nothing and warns of nothing."""
    found = CliRunner().invoke(cli, ["plan", str(spec.folder), "--json"])
    assert found.exit_code == 0, (found.output, found.exception)
    plan = json.loads(found.stdout)
    assert not plan["warnings"]
    return plan


def test_folders_of_classes_that_nobody_has_split(tmp_path):
    for name in CLASSES:
        for n in range(10):
            _image(tmp_path / "data" / name / f"{n}.png")
    _network(tmp_path / "spec")
    spec, splits = _init(tmp_path)
    assert (spec.task.kind, spec.data.format) == ("classification", "photos.py:photos")
    assert (spec.export.shape, spec.distill.crop) == ([1, 3, 24, 24], 24)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [24, 3, 3]
    assert {photo.label for photo in splits.train} == {0, 1, 2}
    assert _planned(spec)["estimate"]["speedup"] > 0


def test_folders_of_splits_by_whatever_name(tmp_path):
    for split in ("train", "valid", "test"):
        for name in CLASSES:
            _image(tmp_path / "data" / split / name / "a.png")
    _network(tmp_path / "spec")
    spec, splits = _init(tmp_path)
    assert (spec.data.format, spec.data.val) == ("imagefolder", "valid")
    assert splits.classes == CLASSES


@pytest.mark.parametrize("parts", [("",), ("_train", "_test"), ("_train", "_val", "_test")])
def test_an_archive_is_cut_into_splits(tmp_path, parts):
    (tmp_path / "data").mkdir()
    arrays = {}
    for part in parts:
        arrays[f"x{part}"] = RANDOM.integers(0, 256, (40, 16, 16), np.uint8)
        arrays[f"y{part}"] = np.arange(40) % 3
    np.savez(tmp_path / "data" / "d.npz", **arrays)
    _network(tmp_path / "spec", side=16, channels=1)
    spec, splits = _init(tmp_path)
    assert spec.export.shape == [1, 1, 16, 16]
    assert spec.data.mean == [0.0]
    each = {1: [32, 4, 4], 2: [36, 4, 40], 3: [40, 40, 40]}[len(parts)]
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == each


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_table_of_labels(tmp_path, kind):
    rows = ["name,value"]
    for n in range(20):
        _image(tmp_path / "data" / "pictures" / f"{n}.png")
        rows.append(f"pictures/{n}.png,{n / 4 if kind == 'regression' else CLASSES[n % 3]}")
    (tmp_path / "data" / "list.csv").write_text("\n".join(rows))
    _network(tmp_path / "spec", outputs=1 if kind == "regression" else 3)
    spec, splits = _init(tmp_path)
    assert spec.task.kind == kind
    assert splits.val[0].label == (1.0 if kind == "regression" else 1)
    if kind == "regression":
        _planned(spec)


def _coco(folder, name, count):
    images, boxes = [], []
    for n in range(count):
        _image(folder / "images" / f"{name}{n}.png", 64)
        images.append({"id": n, "file_name": f"{name}{n}.png"})
        boxes += [{"image_id": n, "bbox": [4, 8, 10, 20]}] * (n % 3)
    (folder / f"{name}.json").write_text(json.dumps({"images": images, "annotations": boxes}))


@pytest.mark.parametrize("is_split", [False, True])
def test_a_coco_file_is_counted(tmp_path, is_split):
    for name in ("train", "val", "test") if is_split else ("instances",):
        _coco(tmp_path / "data", name, 6 if is_split else 20)
    _network(tmp_path / "spec", made="dense()")
    spec, splits = _init(tmp_path, "--target", "cpu")
    assert (spec.task.kind, spec.target) == ("counting", "cpu")
    assert spec.export.shape == [1, 3, 64, 64]
    assert [len(s) for s in (splits.train, splits.val)] == ([6, 6] if is_split else [16, 2])
    assert max(photo.count for photo in splits.train) == 2
    assert [9.0, 18.0] in [p.points[0].tolist() for p in splits.train if p.count]
    if is_split:
        _planned(spec)


def test_points_are_read_as_they_lie(tmp_path):
    rows = []
    for split in ("train", "val", "test"):
        _image(tmp_path / "data" / f"{split}.png", 64)
        (tmp_path / "data" / f"{split}.txt").write_text(f"{split}.png")
        rows.append(json.dumps({"image": f"{split}.png", "points": [[3, 4]]}))
    (tmp_path / "data" / "annotations.jsonl").write_text("\n".join(rows))
    _network(tmp_path / "spec", made="dense()")
    spec, splits = _init(tmp_path)
    assert spec.data.format == "points-jsonl"
    assert splits.test[0].count == 1


def test_an_input_that_the_images_do_not_tell(tmp_path):
    """Photos of many sizes: what the network takes is found among the usual ones."""
    for name in CLASSES:
        for n in range(10):
            _image(tmp_path / "data" / name / f"{n}.png", 30 + n)
    _network(tmp_path / "spec", side=28)
    assert _init(tmp_path)[0].export.shape == [1, 3, 28, 28]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("init-unfit", {"outputs": 5}),
        ("init-unfit", {"outputs": 1}),
        ("init-unfit", {"made": "dense()"}),
        ("init-input", {"channels": 5}),
        ("init-unfit", {"made": "nn.Sequential(nn.Conv2d(3, 2, 1))"}),
        ("init-output", {"made": "nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(2))"}),
    ],
)
def test_a_network_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, code, change):
    for name in CLASSES:
        for n in range(10):
            _image(tmp_path / "data" / name / f"{n}.png")
    _network(tmp_path / "spec", **change)
    with pytest.raises(KDError) as caught:
        _init(tmp_path)
    assert caught.value.code == code
    assert not (tmp_path / "spec" / "kdcompile.toml").exists()
    assert not (tmp_path / "spec" / "photos.py").exists()
    _network(tmp_path / "spec")  # the fix: the network of this data
    _init(tmp_path)


def test_weights_and_data_are_asked_for(tmp_path):
    _network(tmp_path / "spec")
    with pytest.raises(KDError) as caught:
        _init(tmp_path)
    assert caught.value.code == "init-data"
    for name in CLASSES:
        for n in range(10):
            _image(tmp_path / "data" / name / f"{n}.png")
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "spec" / "other.pt")
    with pytest.raises(KDError, match=r"there are other.pt and w.pt") as caught:
        _init(tmp_path)
    assert caught.value.code == "init-weights"
    spec, _ = _init(tmp_path, "--weights", str(tmp_path / "spec" / "w.pt"))
    assert spec.teacher.weights == tmp_path / "spec" / "w.pt"
    with pytest.raises(KDError) as caught:
        _init(tmp_path, "--weights", str(tmp_path / "spec" / "w.pt"))
    assert caught.value.code == "init-exists"


def test_from_needs_data(tmp_path):
    found = CliRunner().invoke(cli, ["init", str(tmp_path), "--from", "model.py:build"])
    assert found.exit_code == 2
    assert "--from and --data go together" in found.output
