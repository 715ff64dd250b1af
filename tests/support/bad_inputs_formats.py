"""Photos of published .mat folders and of factories that must be refused."""

import shutil
from pathlib import Path

import numpy as np
from bad_inputs import SPEC, BadInput, again, give, picture, project, replace, spoilt
from PIL import Image
from scipy.io import savemat

PLAN = ("plan",)
DATA = Path("data")
PHOTOS = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    rng = np.random.default_rng(len(split))
    made = []
    for index in range(3):
        places = rng.choice(256, 6 + index, replace=False)
        array = np.zeros((16, 16, 3), np.uint8)
        array.reshape(256, 3)[places] = 255
        points = np.stack([places % 16, places // 16], 1).astype(np.float32)
        made.append(Photo(f"{split}{index}", points, array=array))
    return made
"""


# --- shanghaitech-mat


def _truth(path: Path, points) -> None:
    cell = np.empty((1, 1), object)
    cell[0, 0] = np.array([[(points, float(len(points)))]], [("location", "O"), ("number", "O")])
    savemat(path, {"image_info": cell})


def _published(folder: Path) -> None:
    """The folders as published; the first photo of the training set is the validation split."""
    if not (folder / "kdcompile.toml").exists():
        names = '\ntrain = "train_data"\nval = "val.txt"\ntest = "test_data"'
        spec = SPEC.replace('"points-jsonl"', '"shanghaitech-mat"')
        project(folder, spec=spec.replace('root = "data"', f'root = "data"{names}'))
        shutil.rmtree(folder / DATA)
    for part, first in (("train_data", 0), ("test_data", 10)):
        for name in ("images", "ground-truth"):
            (folder / DATA / part / name).mkdir(parents=True)
        for number in range(3):
            pixels, points = picture(first + number)
            Image.fromarray(pixels).save(folder / DATA / part / "images" / f"IMG_{number}.jpg")
            _truth(folder / DATA / part / "ground-truth" / f"GT_IMG_{number}.mat", points)
    (folder / DATA / "val.txt").write_text("train_data/images/IMG_0.jpg\n")


def _mat(spoil):
    return spoilt(_published, spoil)


GT = Path("test_data", "ground-truth", "GT_IMG_1.mat")
MAT = [
    BadInput(
        "mat-without-ground-truth", _mat(lambda data: (data / GT).unlink()), PLAN,
        "annotation-missing", again(_published), says=("IMG_1.jpg has no ground truth", str(GT)),
    ),
    BadInput(
        "mat-corrupt", _mat(lambda data: (data / GT).write_bytes(b"x" * 200)), PLAN,
        "annotation-mat", again(_published), says=("as published",),
    ),
    BadInput(
        "mat-of-version-7.3",
        _mat(lambda data: (data / GT).write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")),
        PLAN, "annotation-mat", again(_published),
    ),
    BadInput(
        "mat-of-another-kind", _mat(lambda data: savemat(data / GT, {"points": np.ones((2, 2))})),
        PLAN, "annotation-mat", again(_published), says=("image_info",),
    ),
    BadInput(
        "mat-not-a-number", _mat(lambda data: _truth(data / GT, np.full((2, 2), np.nan))), PLAN,
        "annotation-invalid", again(_published), says=("not a finite number",),
    ),
    BadInput(
        "mat-list-with-an-absolute-path",
        _mat(lambda data: (data / "val.txt").write_text("/etc/hostname\n")), PLAN, "path-outside",
        again(_published), says=("leads out of the data's folder",),
    ),
    BadInput(
        "mat-folder-without-images",
        _mat(lambda data: shutil.rmtree(data / "test_data" / "images")), PLAN, "split-empty",
        again(_published),
    ),
]  # fmt: skip


# --- factories


def _made(code: str):
    """A project whose photos a factory makes, with this in the place of its `return`."""

    def make(folder: Path) -> None:
        _factory(folder)
        give(folder, _factory, "search")
        replace(folder / "data.py", "    return made", f"    {code}")

    return make


def _factory(folder: Path) -> None:
    project(folder, spec=SPEC.replace('"points-jsonl"', '"data.py:photos"'))
    (folder / "data.py").write_text(PHOTOS)


def _mended(folder: Path) -> None:
    (folder / "data.py").write_text(PHOTOS)


def _wrong(name: str, code: str, *says: str, error: str = "data-factory") -> BadInput:
    return BadInput(f"factory-{name}", _made(code), PLAN, error, _mended, says=says)


FACTORIES = [
    _wrong("that-raises", "return made[9]", "IndexError", "the train split", "kdcompile --debug"),
    _wrong("of-nothing", "return None", "'NoneType' object is not iterable"),
    _wrong("of-arrays", "return [p.array for p in made]", "image 0 of the train split", "ndarray"),
    _wrong("of-empty-photos", "return [Photo('a')]", "image 0, a,", "none or several of path"),
    _wrong("of-lost-files", "return [Photo('a', path=root / 'a.png')]", "a path that is no file"),
    _wrong("of-floats", "return [Photo('a', array=np.ones((4, 4, 3)))]", "float64 [4, 4, 3]"),
    _wrong(
        "of-labels-that-are-none",
        "return [Photo('a', array=made[0].array, label=float('nan'))]", "a label of nan",
    ),
    _wrong(
        "of-negative-points", "return [Photo('a', points=[[-1, 2]], array=made[0].array)]",
        "negative coordinate", error="annotation-invalid",
    ),
    _wrong("of-no-photo", "return []", "no image of its own", error="split-empty"),
]  # fmt: skip

CASES = [*MAT, *FACTORIES]
