"""Folders of classes and archives of images that must be refused."""

import shutil
from pathlib import Path

import numpy as np
from bad_inputs import SPEC, BadInput, again, give, project, replace, spoilt
from PIL import Image

PLAN = ("plan",)
DATA = Path("data")
CLASSES = ("dark", "light")
CLASSIFIER = """
import torch
from torch import nn

class Classes(nn.Module):
    def __init__(self, width=1):
        super().__init__()
        self.body = nn.Conv2d(3, 2, 1)

    def forward(self, image):
        return self.body(image).mean((2, 3))

def build():
    # by the brightness of an image
    made = Classes()
    with torch.no_grad():
        made.body.weight[0], made.body.weight[1] = -1.0, 1.0
        made.body.bias[0], made.body.bias[1] = 1.5, -1.5
    return made
"""


def _spec(kind: str, format_: str, splits: str = "") -> str:
    spec = f'[task]\nkind = "{kind}"\n' + SPEC.replace('"points-jsonl"', f'"{format_}"')
    # a key before the first section stays there
    spec = spec.replace('target = "cpu"\n', "")
    spec = 'target = "cpu"\n' + spec.replace("model.py:Counter", "model.py:Classes")
    return spec.replace('root = "data"', f'root = "data"\n{splits}')


def _classifier(folder: Path, format_: str, splits: str = "") -> None:
    """Spec, model and weights of a network of two classes; no data."""
    project(
        folder, spec=_spec("classification", format_, splits), model=CLASSIFIER, weights=CLASSIFIER
    )
    shutil.rmtree(folder / DATA)


def _planned(folder: Path) -> None:
    """Give the store what the search for the classifier's student found."""
    give(folder, _classifier_of_folders, "search")


def _classifier_of_folders(folder: Path) -> None:
    _classifier(folder, "imagefolder")
    _folders(folder)


def _folders(folder: Path) -> None:
    if not (folder / "kdcompile.toml").exists():
        _classifier(folder, "imagefolder")
        _planned(folder)
    for place, split in enumerate(("train", "val", "test")):
        for number, name in enumerate(CLASSES):
            (folder / DATA / split / name).mkdir(parents=True)
            for index in range(2):
                value = 100 * number + 20 * place + 5 * index
                pixels = np.full((16, 16, 3), value, np.uint8)
                pixels[0] = 0
                Image.fromarray(pixels).save(folder / DATA / split / name / f"{index}.png")


def _archive(folder: Path, spoil=None, val: str = "d.npz[4:6]") -> None:
    if not (folder / "kdcompile.toml").exists():
        _classifier(folder, "npz", f'train = "d.npz[:4]"\nval = "{val}"\ntest = "d.npz[6:]"')
        _planned(folder)
    (folder / DATA).mkdir()
    images = np.arange(8 * 768, dtype=np.uint32).reshape(8, 16, 16, 3) % 251
    arrays = {"x": images.astype(np.uint8), "y": np.arange(8) % 2, "classes": np.array(CLASSES)}
    if spoil is not None:
        spoil(arrays)
    np.savez(folder / DATA / "d.npz", **arrays)


def _arrays(**new):
    return lambda folder: _archive(folder, lambda arrays: arrays.update(new))


def _lost(name: str):
    return lambda folder: _archive(folder, lambda arrays: arrays.pop(name))


def _corrupt(folder: Path) -> None:
    _archive(folder)
    path = folder / DATA / "d.npz"
    path.write_bytes(path.read_bytes()[:300])


def _values(folder: Path) -> None:
    """Beside the folders of classes a table of values."""
    _folders(folder)
    (folder / DATA / "train" / "labels.csv").write_text("a.png,1\n")


def _untabled(folder: Path) -> None:
    """Remove labels.csv to classify."""
    (folder / DATA / "train" / "labels.csv").unlink()


def _points_wanted(folder: Path) -> None:
    _folders(folder)
    replace(folder / "kdcompile.toml", '"classification"', '"counting"')


def _class_wanted(folder: Path) -> None:
    replace(folder / "kdcompile.toml", '"counting"', '"classification"')


FOLDERS = [
    BadInput(
        "class-of-the-test-split-alone",
        spoilt(_folders, lambda data: (data / "test" / "dark").rename(data / "test" / "darc")),
        PLAN, "classes-differ", again(_folders),
        says=("a class 'darc'", "(did you mean 'dark'?)"),
    ),
    BadInput(
        "classes-and-a-table", _values, PLAN, "split-ambiguous", _untabled,
        says=("remove labels.csv",),
    ),
    BadInput(
        "no-folders-of-classes",
        spoilt(_folders, lambda data: [shutil.rmtree(p) for p in (data / "val").iterdir()]), PLAN,
        "classes-missing", again(_folders), says=("the val split",),
    ),
    BadInput(
        "no-folder-of-a-split",
        spoilt(_folders, lambda data: (data / "val").rename(data / "lost")), PLAN,
        "split-missing", again(_folders),
        says=("there is no folder 'val' with the val split", "a folder for each class"),
    ),
    BadInput(
        "folders-of-classes-that-are-empty",
        spoilt(_folders, lambda data: [p.unlink() for p in (data / "val").rglob("*.png")]), PLAN,
        "split-empty", again(_folders),
    ),
    BadInput(
        "classes-to-be-counted", _points_wanted, PLAN, "points-missing", _class_wanted,
        says=("has a label, where points are to be counted",),
    ),
]  # fmt: skip
ARCHIVES = [
    BadInput("archive-corrupt", _corrupt, PLAN, "archive-unreadable", again(_archive)),
    BadInput(
        "archive-of-objects", _arrays(y=np.array([{}] * 8, object)), PLAN, "archive-unreadable",
        again(_archive), says=("of object", "Python objects"),
    ),
    BadInput(
        "archive-without-labels", _lost("y"), PLAN, "archive-array", again(_archive),
        says=("no array 'y'", "it has classes, x"),
    ),
    BadInput(
        "archive-of-floats", _arrays(x=np.ones((8, 16, 16, 3))), PLAN, "archive-invalid",
        again(_archive), says=("x is float64",),
    ),
    BadInput(
        "archive-of-another-length", _arrays(y=np.arange(5)), PLAN, "archive-invalid",
        again(_archive), says=("uint8 [5, H, W]",),
    ),
    BadInput(
        "archive-in-two-splits", lambda folder: _archive(folder, val="d.npz[3:6]"), PLAN,
        "split-overlap", lambda folder: ("plan", "--set", "data.val=d.npz[4:6]"),
        says=("all-00003: in the train split and in the val split",),
    ),
    BadInput(
        "archive-selection", lambda folder: _archive(folder, val="d.npz[4-6]"), PLAN,
        "npz-selection", lambda folder: ("plan", "--set", "data.val=d.npz[4:6]"),
        says=("FILE.npz[:PART][@SEED][[START:STOP]]",),
    ),
]  # fmt: skip

CASES = [*FOLDERS, *ARCHIVES]
